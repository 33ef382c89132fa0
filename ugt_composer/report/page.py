"""The HTML page: one file with plotly.js, style and script inside, which loads nothing over the network.

The page's content security policy forbids the browser every request, so that this stays true whatever the data holds.
All text from runs is escaped.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs

from ugt_composer.report.figures import DARK, RUNS, Figure, colour_of

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


@dataclass
class Plots:
    """The figures of the page, by the id of their place; None: nothing to draw there yet."""

    figures: dict[str, Figure | None] = field(default_factory=dict)
    choices: dict[str, dict[str, Any]] = field(default_factory=dict)

    def panel(self, figure: Figure | None, caption: str, text: str = "") -> str:
        """A figure with its caption; `text` says how to read it. The figure is drawn when the page is opened."""
        name = f"plot-{len(self.figures)}"
        self.figures[name] = figure
        height = 250 if figure is None else int(figure["layout"]["height"])
        label = escape(f"{caption} {text}".strip())
        return (
            f'<figure><figcaption><b>{escape(caption)}</b> {escape(text)}</figcaption><div class="plot" id="{name}" '
            f'role="img" aria-label="{label}" style="height:{height}px"></div></figure>'
        )

    def chosen(self, label: str, options: dict[str, tuple[str, list[Figure | None]]], captions: Sequence[str]) -> str:
        """A row of panels and a list to choose what they show.

        Args:
            options: key → (label, a figure for each caption); the first one is shown at first.
        """
        name, first = f"choice-{len(self.choices)}", next(iter(options.values()))[1]
        begin = len(self.figures)
        panels_html = "".join(self.panel(figure, caption) for figure, caption in zip(first, captions, strict=True))
        self.choices[name] = {
            "plots": [f"plot-{begin + at}" for at in range(len(captions))],
            "options": {key: figures for key, (_, figures) in options.items()},
        }
        entries = "".join(
            f'<option value="{escape(key)}">{escape(text)}</option>' for key, (text, _) in options.items()
        )
        return (
            f'<div class="choose"><label for="{name}">{escape(label)}</label>'
            f'<select id="{name}" data-choice="{name}">{entries}</select></div>{panels([panels_html])}'
        )

    def json(self) -> str:
        """For a script element: no "<", which could end it."""
        content = {"plots": self.figures, "choices": self.choices, "dark": DARK}
        return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


@dataclass(frozen=True)
class Section:
    """
    Attributes:
        anchor, short: in the address, and in the list of sections.
        title: a question that the section answers.
        lead: HTML, one or two sentences about what one sees.
        body: HTML.
    """

    anchor: str
    short: str
    title: str
    lead: str
    body: str


def page(title: str, subtitle: str, runs: Sequence[str], sections: Sequence[Section], plots: Plots, foot: str) -> str:
    """
    Args:
        title, subtitle, foot: plain text.
        runs: names, in the order of their colours.
    """
    style, script = (files(__package__).joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    links = "".join(f'<a href="#{section.anchor}">{escape(section.short)}</a>' for section in sections)
    buttons = "".join(
        f'<button class="run" data-run="{escape(name)}" aria-pressed="true" title="show or hide this run">'
        f"{swatch(number)}{escape(name)}</button>"
        for number, name in enumerate(runs)
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title>",
        f"<style>{style}</style></head><body>",
        f'<header><div><h1>{escape(title)}</h1><p class="muted">{escape(subtitle)}</p></div>',
        '<button id="theme" type="button">☾ Dark</button></header>',
        f'<div class="bar"><div><nav aria-label="sections">{links}</nav><div class="runs">{buttons}</div></div></div>',
        "<main>",
        *map(_section, sections),
        f"</main><footer><p>{escape(foot)}</p></footer>",
        f'<script type="application/json" id="figures">{plots.json()}</script>',
        f"<script>{get_plotlyjs()}</script>",
        f"<script>{script}</script>",
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _section(section: Section) -> str:
    lead = f'<p class="lead">{section.lead}</p>' if section.lead else ""
    return f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>{lead}{section.body}</section>'


def swatch(number: int) -> str:
    """A square in the colour of a run."""
    light = colour_of(number)
    return f'<span class="swatch" style="--c:{light};--d:{RUNS[light]}"></span>'


def panels(html: Iterable[str], wide: bool = False) -> str:
    return f'<div class="panels{" wide" if wide else ""}">{"".join(html)}</div>'


def absent(text: str) -> str:
    """Says that something is not shown, and why."""
    return f'<div class="absent">{escape(text)}</div>'


def note(text: str) -> str:
    return f'<div class="note">{escape(text)}</div>'


def tile(value: str, label: str) -> str:
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


@dataclass(frozen=True)
class Html:
    """A cell that is HTML already."""

    text: str


Cell = str | Html


def table(
    heads: Sequence[str], rows: Sequence[Sequence[Cell]], texts: Iterable[int] = (), marked: Iterable[int] = ()
) -> str:
    """A table whose first column names the rows.

    Args:
        texts: numbers of the other columns that hold text; the rest are numbers, aligned to the right.
        marked: rows with a background.
    """
    texts, marked = {0, *texts}, set(marked)
    kinds = ["text" if column in texts else "number" for column in range(len(heads))]
    head = "".join(f'<th class="{kind}">{escape(text)}</th>' for kind, text in zip(kinds, heads, strict=True))
    body = []
    for number, row in enumerate(rows):
        first, *others = (cell.text if isinstance(cell, Html) else escape(cell) for cell in row)
        cells = "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds[1:], others, strict=True))
        row_kind = ' class="differs"' if number in marked else ""
        body.append(f'<tr{row_kind}><th scope="row">{first}</th>{cells}</tr>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
