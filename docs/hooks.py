"""Hooks of mkdocs: links to files of the repository, undocumented names, the language of the Chinese pages.

A page links to a file outside docs/ as on GitHub: `[RESULTS.md](../benchmarks/RESULTS.md)`. Each such file becomes a
page below files/, so that the site is complete without a network. A link to a file that does not exist stays as it is,
and mkdocs reports it.

A name of the Python reference without a docstring is a warning, and so an error of `make docs`.
"""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files
from undocumented import shown_names, undocumented  # beside this file

log = logging.getLogger("mkdocs.hooks")  # mkdocs counts its warnings

ROOT = Path(__file__).resolve().parent.parent
DOCS, FILES = "docs", "files"
# A fenced block or code, in which nothing is a link, or else the target of a link.
_CODE_OR_LINK = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1`*$|(`+).+?\2|(?<=\]\()(?P<target>[^)\s]+)", re.M | re.S)


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each file of the repository that a page of docs/, or such a page itself, links to."""
    pages = {f"{DOCS}/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    missing = {path for page, text in pages.items() for path in _linked_files(page, text)}
    while missing:
        path = missing.pop()
        text = _page_of(path)
        pages[path] = text
        files.append(File.generated(config, _site_uri(path), content=text))
        if path.endswith(".md"):
            missing |= set(_linked_files(path, text)) - set(pages)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Directs the links of a page to the pages of the files that they name, and warns about undocumented names."""
    for name in shown_names(markdown):
        for path in undocumented(name):
            log.warning("%s: %s has no docstring", page.file.src_uri, path)
    source = _repository_path(page.file.src_uri)
    if page.file.src_uri.startswith(f"{FILES}/") and not source.endswith(".md"):
        return markdown

    def directed(target: str) -> str:
        path, hash_, anchor = target.partition("#")
        linked = _in_repository(source, path)
        if linked is None or (linked.startswith(f"{DOCS}/") and not page.file.src_uri.startswith(f"{FILES}/")):
            return target
        uri = linked.removeprefix(f"{DOCS}/") if linked.startswith(f"{DOCS}/") else _site_uri(linked)
        return relpath(uri, PurePosixPath(page.file.src_uri).parent) + hash_ + anchor

    return _with_targets(markdown, directed)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Marks Chinese pages as such, for the browser's fonts, hyphens and translations."""
    if page.file.src_uri.startswith("zh/"):
        return output.replace('<html lang="en"', '<html lang="zh-Hans"', 1)
    return output


def _with_targets(markdown: str, change: Callable[[str], str]) -> str:
    """The text with the targets of its links changed, except in code."""
    return _CODE_OR_LINK.sub(lambda match: change(match[0]) if match["target"] else match[0], markdown)


def _linked_files(source: str, text: str) -> Iterator[str]:
    """Files of the repository outside docs/ that a page links to."""
    targets = (match["target"] for match in _CODE_OR_LINK.finditer(text) if match["target"])
    paths = (_in_repository(source, target.partition("#")[0]) for target in targets)
    yield from (path for path in paths if path is not None and not path.startswith(f"{DOCS}/"))


def _in_repository(source: str, target: str) -> str | None:
    """The existing file or folder that a relative link of `source` names, from the root of the repository."""
    if not target or ":" in target or target.startswith("/"):
        return None
    path = normpath(PurePosixPath(source).parent / target)
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def _site_uri(path: str) -> str:
    return f"{FILES}/{path}" if path.endswith(".md") else f"{FILES}/{path}.md"


def _repository_path(src_uri: str) -> str:
    """The inverse of `_site_uri`, for pages of docs/ too. Files that are no Markdown keep the ending .md in between."""
    if not src_uri.startswith(f"{FILES}/"):
        return f"{DOCS}/{src_uri}"
    path = src_uri.removeprefix(f"{FILES}/")
    return path if (ROOT / path).is_file() else path.removesuffix(".md")


def _page_of(path: str) -> str:
    """The text of the page that shows a file of the repository, or the names in a folder."""
    file = ROOT / path
    if file.is_dir():
        names = sorted(
            f"{one.name}/" if one.is_dir() else one.name for one in file.iterdir() if one.name[0] not in "._"
        )
        return f"# {path}/\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    text = file.read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    language = {".yaml": "yaml", ".yml": "yaml", ".py": "python", ".toml": "toml"}.get(file.suffix, "text")
    return f"# {path}\n\n````{language}\n{text}````\n"
