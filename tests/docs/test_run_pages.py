"""Runs the code blocks of each page in order, in a folder with small data: `make test-docs`, minutes per page."""

import re
import shutil
from pathlib import Path

import pytest

from tests.docs import shell
from tests.docs.pages import NOT_WRITTEN, Block, blocks, pages, text_of
from tests.docs.prepared import prepare, run
from ugt_composer.config.load import load_config
from ugt_composer.errors import UserError

PAGES = [
    page
    for page in pages()
    if not page.startswith(("docs/zh/", "README.zh", "CONTRIBUTING")) and NOT_WRITTEN not in text_of(page)
]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "shop"
    folder.mkdir()
    prepare(folder)
    return folder


@pytest.mark.pages
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.language == "bash" for block in blocks(page))])
def test_blocks_of_a_page_run(page, prepared, tmp_path):
    folder = tmp_path / "shop"
    shutil.copytree(prepared, folder, symlinks=True)
    made: set[str] = set()
    output = ""
    for block in blocks(page):
        if block.title and block.language in ("yaml", "json", "python") and not block.text.startswith("--8<--"):
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text)
        elif block.is_output:
            assert_printed(block, output)
        elif block.not_run is None and block.language == "bash":
            forget_prepared(block.text, folder, made)
            output = run(block.text, folder)
        elif block.not_run is None and block.language == "python":
            (folder / "block.py").write_text(block.text)
            for name in re.findall(r"yamls/\w+\.yaml", block.text):  # a run of its own, not one of other data to resume
                shutil.rmtree(folder / load_config(folder / name).save_folder, ignore_errors=True)
            output = run("python block.py", folder)


def forget_prepared(script: str, folder: Path, made: set[str]) -> None:
    """Deletes what commands are about to make, unless it is theirs already: the prepared folder has it as well."""
    for _, words in shell.commands(script):
        outputs = [words[place + 1] for place, word in enumerate(words[:-1]) if word == "--out"]
        yamls = [word for word in words[1:] if word.endswith(".yaml") and "=" not in word and (folder / word).exists()]
        if yamls and "--dry-run" not in words and "rounds.yaml" not in yamls[0]:
            overrides = [word for word in words if re.match(r"[a-z][\w.]*=", word)]
            try:
                outputs.append(load_config(*(folder / name for name in yamls), overrides=overrides).save_folder)
            except UserError:
                continue  # the command says so itself
        for name in outputs:
            if name not in made and (folder / name).exists():
                (shutil.rmtree if (folder / name).is_dir() else Path.unlink)(folder / name)
            made.add(name)


def assert_printed(block: Block, output: str) -> None:
    """The lines of a block are among the output's, in their order; … stands for anything."""
    pattern = r"(?:.*\n)*?".join(
        ".*".join(map(re.escape, line.split("…"))) + r"[ ]*\n" for line in block.text.splitlines() if line.strip()
    )
    assert re.search(pattern, output if output.endswith("\n") else output + "\n"), f"{block.place}: printed\n{output}"


def test_output_is_compared_line_by_line():
    def printed(text: str) -> Block:
        return Block("p.md", 1, "text", None, text, None, True)

    assert_printed(printed("a 0.1… b\nend\n"), "a 0.12 b\nbetween\nend\n")
    with pytest.raises(AssertionError):
        assert_printed(printed("a 0.2… b\n"), "a 0.12 b\n")
    with pytest.raises(AssertionError):
        assert_printed(printed("end\na\n"), "a\nend\n")
