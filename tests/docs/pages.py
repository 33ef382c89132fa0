"""The pages of the documentation: their code blocks, headings and links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[2]
NOT_WRITTEN = "<!-- not written yet -->"  # a page with a title only, which is in the navigation already
_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>[^\n`]*)$")
_NOT_RUN = re.compile(r"<!-- not run: (\S.*?) -->")
_OUTPUT = "<!-- output -->"
_TITLE = re.compile(r'title="([^"]+)"')
_LINK = re.compile(r"(?<!`)\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
_SLUG = slugify(case="lower")


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        page: its file, from the root of the repository.
        line: of its first line of code, from 1.
        language: of the fence; "" if it names none.
        title: the file that the block shows; None for none.
        not_run: why it is not run; None if it can be.
        is_output: whether it is marked as the output of the block before it.
    """

    page: str
    line: int
    language: str
    title: str | None
    text: str
    not_run: str | None
    is_output: bool

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """All pages with code that is checked, from the root of the repository."""
    single = [name for name in ("README.md", "README.zh-CN.md", "CONTRIBUTING.md") if (ROOT / name).exists()]
    return [*single, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, text: str | None = None) -> list[Block]:
    return [part for part in _parts(page, text_of(page) if text is None else text) if isinstance(part, Block)]


def prose(page: str) -> str:
    """The text without its blocks of code."""
    return "\n".join(part for part in _parts(page, text_of(page)) if isinstance(part, str))


def headings(page: str) -> list[tuple[int, str]]:
    """Levels and texts."""
    found = re.findall(r"^(#{1,6}) +(?:<a id=\"[^\"]*\"></a>)?(.*)$", prose(page), re.M)
    return [(len(marks), text) for marks, text in found]


def anchors(page: str) -> set[str]:
    """The names that links to places of this page may have."""
    explicit = re.findall(r"<a id=\"([^\"]+)\"", prose(page))
    return {slug(text) for _, text in headings(page)} | set(explicit)


def slug(heading: str) -> str:
    """The anchor of a heading, on GitHub and in the site."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # of a link, its text
    return str(_SLUG(re.sub(r"[`*]", "", text), "-"))


def links(page: str) -> list[str]:
    """Targets of the links, without those in code."""
    return _LINK.findall(re.sub(r"(`+).+?\1", "", prose(page)))


def _parts(page: str, text: str) -> Iterator[Block | str]:
    """The lines of prose and the blocks, in their order."""
    lines, number, marks = text.split("\n"), 0, list[str]()
    while number < len(lines):
        opening = _FENCE.match(lines[number])
        if opening is None:
            if lines[number].strip():
                marks = (
                    [lines[number].strip()]
                    if not lines[number].strip().startswith("<!--")
                    else [*marks, lines[number].strip()]
                )
            yield lines[number]
            number += 1
            continue
        end = next(
            (
                place
                for place in range(number + 1, len(lines))
                if re.fullmatch(rf" *{opening['fence']}{opening['fence'][0]}* *", lines[place])
            ),
            len(lines),
        )
        indent, info = len(opening["indent"]), opening["info"].strip()
        reason = next((match[1] for mark in marks if (match := _NOT_RUN.fullmatch(mark))), None)
        title = _TITLE.search(info)
        yield Block(
            page=page,
            line=number + 2,
            language=re.split(r"[\s{]", info, maxsplit=1)[0],
            title=title[1] if title else None,
            text="".join(f"{line[indent:]}\n" for line in lines[number + 1 : end]),
            not_run=reason,
            is_output=_OUTPUT in marks,
        )
        number, marks = end + 1, []
