"""The goals of the GPU benchmarks: what the tables of a file of results reach of each. Needs no GPU.

python -m benchmarks.on_gpu.goals [FILE]
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.claims import markdown

GOALS = "goals"
HEADS = ("what", "case", "measured", "goal", "reached", "run of")

Row = Mapping[str, str]  # head → cell


@dataclass(frozen=True)
class Tables:
    """The tables of a file of results.

    Attributes:
        rows: (section, title, first cell of a row) → the row's cells by the heads of its table.
        dates: of the runs, by section.
    """

    rows: Mapping[tuple[str, str, str], Row]
    dates: Mapping[str, str]


@dataclass(frozen=True)
class Goal:
    """
    Attributes:
        name: of the goal.
        what: the case that it is about.
        section: of the results, which has the case.
        unit: of the figures: "×" or "%".
        target: that is to be reached.
        at_least: whether the target is a lower bound; otherwise it is an upper bound.
        read: the figure in the tables; None: they do not have it.
    """

    name: str
    what: str
    section: str
    unit: str
    target: float
    read: Callable[[Tables], float | None]
    at_least: bool = True


def read_tables(path: Path) -> Tables:
    rows: dict[tuple[str, str, str], Row] = {}
    dates: dict[str, str] = {}
    section = title = ""
    heads: list[str] = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        if line.startswith("## "):
            section, title, heads = line[3:], "", []
        elif line.startswith("### "):
            title, heads = line[4:], []
        elif line.startswith("| "):
            cells = line[2:].removesuffix(" |").split(" | ")
            if heads:
                rows[section, title, cells[0]] = dict(zip(heads, cells, strict=False))
            heads = heads or cells
        elif not line.startswith("|"):
            heads = []
            if match := re.search(r"; (\d{4}-\d\d-\d\d)\.$", line):
                dates.setdefault(section, match[1])
    return Tables(rows, dates)


def number(text: str | None) -> float | None:
    """The number that a cell begins with; None if there is none."""
    match = re.match(r"-?[\d,]*\.?\d+", text or "")
    return float(match[0].replace(",", "")) if match else None


def cell(tables: Tables, section: str, title: str, what: str, head: str) -> float | None:
    return number(tables.rows.get((section, title, what), {}).get(head))


def quotient(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def attention(length: int, way: str, head: str) -> Callable[[Tables], float | None]:
    what = f"{way}, 32 dimensions, length {length:,}"
    return lambda tables: cell(tables, "attention", "by length", what, head)


def over_pieces(tables: Tables) -> float | None:
    return quotient(attention(512, "pieces", "ms")(tables), attention(512, "kernel", "ms")(tables))


def utilisation(stage: int) -> Callable[[Tables], float | None]:
    """Of the shipped stage with full histories, the better of eager and compiled."""

    def read(tables: Tables) -> float | None:
        shipped = "with" if stage == 1 else "without"
        reached = [
            cell(
                tables,
                "stages",
                variant,
                f"stage {stage}, {variant}, history 512, {shipped} activation checkpointing",
                "utilisation",
            )
            for variant in ("eager", "compiled")
        ]
        return max((one for one in reached if one is not None), default=None)

    return read


EQUAL = "the same items, as many active parameters by decoder layers"  # row of the section t5
CONSTRAINED = "prefix_allowed_tokens_fn"  # row of the section t5
LOADED = ("stage 2, history 512", "stage 2, history 1 to 511")  # rows of the section data
WAITED = "of the time waiting for data"


def loaded(what: str) -> Callable[[Tables], float | None]:
    return lambda tables: cell(tables, "data", "", what, WAITED)


ALL = (
    Goal("attention, over the path without kernels", "length 512, 32 dimensions", "attention", "×", 3, over_pieces),
    Goal(
        "attention, of the bf16 ceiling",
        "length 4,096, 32 dimensions",
        "attention",
        "%",
        50,
        attention(4096, "kernel", "of the ceiling"),
    ),
    *(
        Goal("step, of the bf16 ceiling", f"stage {stage}, history 512", "stages", "%", 40, utilisation(stage))
        for stage in (1, 2, 3)
    ),
    Goal(
        "training rows/s over T5's",
        "as many active parameters",
        "t5",
        "×",
        2,
        lambda tables: cell(tables, "t5", "training", EQUAL, "T5's / our ms"),
    ),
    Goal(
        "generation over T5's",
        "50 beams, only existing items",
        "t5",
        "×",
        20,
        lambda tables: cell(tables, "t5", "generation", CONSTRAINED, "T5's / our ms"),
    ),
    *(Goal("time waiting for data", what, "data", "%", 1, loaded(what), at_least=False) for what in LOADED),
)


def figure(value: float, unit: str) -> str:
    return f"{value:.1f} {unit}"


def bound(goal: Goal) -> str:
    return f"{'≥' if goal.at_least else '≤'} {goal.target:g} {goal.unit}"


def cells(goal: Goal, tables: Tables) -> Sequence[str]:
    value = goal.read(tables)
    if value is None:
        return goal.name, goal.what, "", bound(goal), "not measured", ""
    holds = value >= goal.target if goal.at_least else value <= goal.target
    date = tables.dates.get(goal.section, "")
    return goal.name, goal.what, figure(value, goal.unit), bound(goal), "yes" if holds else "no", date


def goals_section(tables: Tables) -> str:
    """Markdown, without the heading."""
    how = (
        "From the tables above. `benchmarks/RESULTS.md`, section roofline, has the limit of each: what the card's "
        "operations and memory traffic allow."
    )
    return "\n".join((how, "", *markdown(HEADS, [cells(goal, tables) for goal in ALL])))


if __name__ == "__main__":
    print(goals_section(read_tables(Path((sys.argv[1:] or ["benchmarks/RESULTS-gpu.md"])[0]))))
