"""The site is built without warnings and loads nothing from the network; links of the other pages lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path
from posixpath import normpath

import pytest

from tests.docs.pages import ROOT, anchors, links, pages, slug


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site. It takes a few seconds."""
    folder = tmp_path_factory.mktemp("site")
    built = build(folder)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def build(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # Not --quiet: mkdocs then counts no warnings, and a broken link is no error.
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder), *options]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.processes
def test_broken_links_and_anchors_are_errors(tmp_path):
    """A site of one page, with the settings of this one."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(
        "# A\n\n[b](#no-anchor) [c](no-page.md) [d](../no-file.txt) [e](../pyproject.toml)\n"
    )
    (tmp_path / "mkdocs.yml").write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\nhooks: [{ROOT / 'docs/hooks.py'}]\nplugins: []\nwatch: []\nnav: [index.md]\n"
    )
    built = build(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert built.returncode != 0
    assert all(name in built.stderr for name in ("no-anchor", "no-page.md", "no-file.txt"))
    assert "pyproject.toml" not in built.stderr


@pytest.mark.processes
def test_pages_load_nothing_from_the_network(site):
    from_network = re.compile(
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//|<link\b(?![^>]*rel=[\"']?canonical)[^>]*"
        r"\bhref=[\"']?(?:https?:)?//|@import|url\([\"']?https?:"
    )
    assert [page.name for page in site.rglob("*.html") if from_network.search(page.read_text())] == []


@pytest.mark.processes
def test_a_linked_file_of_the_repository_is_a_page(site):
    assert 'href="files/CONTRIBUTING.html#where-things-go"' in (site / "architecture.html").read_text()
    assert 'href="../architecture.html"' in (site / "files/CONTRIBUTING.html").read_text()


@pytest.mark.processes
def test_chinese_pages_name_their_language(site):
    assert '<html lang="zh-Hans"' in (site / "zh/stages.html").read_text()
    assert '<html lang="en"' in (site / "stages.html").read_text()


@pytest.mark.parametrize("page", [page for page in (*pages(), "CHANGELOG.md") if not page.startswith("docs/")])
def test_links_of_pages_outside_the_site(page):
    """mkdocs checks those of the site; anchors of the Python reference are made when it is built."""
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        file = normpath(Path(page).parent / path) if path else page
        if not (ROOT / file).exists() or (anchor and not file.startswith("docs/api/") and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_slugs_are_those_of_github():
    assert slug("Many GPUs, many machines") == "many-gpus-many-machines"
    assert slug("`ugt recommend`: what it prints") == "ugt-recommend-what-it-prints"
    assert slug("语义 ID") == "语义-id"
