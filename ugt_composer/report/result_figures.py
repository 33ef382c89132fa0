"""Figures of an evaluation's results, and of the semantic IDs."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from ugt_composer.report.figures import (
    DASHES,
    INK,
    MOST_POINTS,
    MUTED,
    RUNS,
    SHADES,
    SURFACE,
    Figure,
    colour_of,
    figure,
    line_style,
    log_ticks,
    rounded,
)
from ugt_composer.report.results import ByPopularity, Result
from ugt_composer.report.run_folder import Run
from ugt_composer.report.semantic_ids import SemanticIds
from ugt_composer.vocabulary import LEVELS

Results = Mapping[int, Result]  # by the number of the run


def by_k(runs: Sequence[Run], results: Results, metric: str) -> Figure | None:
    """A metric by the length of the list."""
    traces = []
    for number, result in results.items():
        points = [(k, result.metrics[f"{metric}@{k}"]) for k in result.k_values if f"{metric}@{k}" in result.metrics]
        if not points:
            continue
        traces.append(
            go.Scatter(
                x=[k for k, _ in points],
                y=[rounded(value) for _, value in points],
                mode="lines+markers",
                line=line_style(number),
                marker={"size": 7},
                legendgroup=runs[number].name,
                hovertemplate=f"{escape(runs[number].name)}<br>{metric}@%{{x}}: %{{y:.4f}}<extra></extra>",
            )
        )
    if not traces:
        return None
    ticks = sorted({k for result in results.values() for k in result.k_values})
    x = {"text": "length k of the list", "type": "log", "tickvals": ticks, "ticktext": [str(k) for k in ticks]}
    return figure(traces, 250, x, {"text": f"{metric}@k", "rangemode": "tozero"})


def _bars(
    runs: Sequence[Run],
    groups: Mapping[int, list[tuple[str, float, int, str]]],
    x: str,
    y: str,
) -> Figure | None:
    """Bars with 95 % intervals.

    Args:
        groups: run → (group, mean, rows, more for the tooltip).
    """
    order = list(dict.fromkeys(label for bars in groups.values() for label, *_ in bars))
    traces = []
    for number, bars in groups.items():
        # Of a mean of hits and misses; of means of fractions it is too wide.
        errors = [1.96 * math.sqrt(max(0.0, mean * (1 - mean)) / rows) for _, mean, rows, _ in bars]
        traces.append(
            go.Bar(
                x=[label for label, *_ in bars],
                y=[rounded(mean) for _, mean, *_ in bars],
                error_y={
                    "type": "data",
                    "array": list(map(rounded, errors)),
                    "thickness": 1,
                    "width": 3,
                    "color": MUTED,
                },
                marker={"color": colour_of(number), "pattern": {"shape": ("", "/", ".")[number // len(RUNS) % 3]}},
                customdata=[
                    [f"{rows:,}", more, rounded(error)] for (_, _, rows, more), error in zip(bars, errors, strict=True)
                ],
                legendgroup=runs[number].name,
                hovertemplate=f"{escape(runs[number].name)}<br>%{{x}}<br>{y}: %{{y:.4f}} ± %{{customdata[2]:.4f}}<br>"
                "%{customdata[0]} rows%{customdata[1]}<extra></extra>",
            )
        )
    if not traces:
        return None
    x_axis = {"text": x, "type": "category", "categoryorder": "array", "categoryarray": order}
    return figure(traces, 290, x_axis, {"text": y, "rangemode": "tozero"}, barmode="group", bargap=0.25)


def by_length(runs: Sequence[Run], results: Results) -> Figure | None:
    """Recall by the number of items in the history."""
    groups, name = {}, "recall"
    for number, result in results.items():
        rows = [row for row in result.by_length if row.get("users")]
        if rows:
            name = next(key for key in rows[0] if key.startswith("recall@"))
            groups[number] = [(str(row["length"]), float(row[name]), int(row["users"]), "") for row in rows]
    return _bars(runs, groups, "items in the history", name)


def by_popularity(runs: Sequence[Run], results: Results) -> Figure | None:
    """Recall by the popularity of the target."""
    groups, k = {}, 0
    for number, popularity in _popularity(results):
        k = popularity.k
        groups[number] = [
            (
                _short(group.label),
                group.recall,
                group.rows,
                f", {group.items:,} items, {group.targets:,} targets",
            )
            for group in popularity.groups
            if group.recall is not None
        ]
    return _bars(runs, groups, "popularity of the target in the training data", f"recall@{k}")


def _short(label: str) -> str:
    return {"most popular": "1<br>most popular", "long tail": "5<br>long tail"}.get(
        label, label.replace(" ", "<br>", 1)
    )


def shown_by_popularity(runs: Sequence[Run], results: Results) -> Figure | None:
    """How much of the training targets, and of the recommendations, falls on the most popular items."""
    traces: list[Any] = []
    for number, popularity in _popularity(results):
        for name in ("training targets", "recommendations") if not traces else ("recommendations",):
            x, y = popularity.curves[name]
            is_model = name == "recommendations"
            shown = escape(runs[number].name) + ", recommendations" if is_model else name
            traces.append(
                go.Scatter(
                    x=list(map(rounded, x)),
                    y=list(map(rounded, y)),
                    mode="lines",
                    line=line_style(number) if is_model else {"color": MUTED, "dash": "dash", "width": 2},
                    legendgroup=runs[number].name if is_model else None,
                    name="training targets",
                    showlegend=not is_model,
                    hovertemplate=f"{shown}<br>the first %{{x:.1%}} of the items<br>have %{{y:.1%}}<extra></extra>",
                )
            )
    if not traces:
        return None
    percent = {"tickformat": ".0%", "range": [0, 1.01]}
    return figure(
        traces,
        290,
        {"text": "items, most popular first", **percent},
        {"text": "fraction of targets or places", **percent},
        showlegend=True,
    )


def _popularity(results: Results) -> list[tuple[int, ByPopularity]]:
    return [(number, result.popularity) for number, result in results.items() if result.popularity is not None]


def code_use(ids: SemanticIds) -> Figure:
    """How many items each used code of a level has, largest first."""
    traces = []
    for level in range(LEVELS):
        uses = ids.uses[level]
        step = -(-len(uses) // MOST_POINTS)
        places = sorted({*range(0, len(uses), step), len(uses) - 1})
        traces.append(
            go.Scatter(
                x=[rounded((place + 1) / len(uses)) for place in places],
                y=[uses[place] for place in places],
                mode="lines",
                line={
                    "color": (INK, colour_of(0), colour_of(3))[level],
                    "dash": DASHES[level],
                    "width": 2,
                    "shape": "hv",
                },
                name=f"level {level + 1}",
                showlegend=True,
                hovertemplate=f"level {level + 1}<br>%{{x:.1%}} of its codes: %{{y:,}} items or more<extra></extra>",
            )
        )
    x = {"text": "used codes, largest first", "tickformat": ".0%", "range": [0, 1.01]}
    y = {"text": "items of a code", **log_ticks(1, max(max(uses) for uses in ids.uses))}
    return figure(traces, 330, x, y, showlegend=True)


def tree(ids: SemanticIds) -> Figure:
    """The first two levels, each prefix as large as it has items."""
    names, labels, above, sizes, texts, colours = [], [], [], [], [], []
    shades = list(SHADES)
    for number, branch in enumerate(ids.branches):
        prefix = branch.prefix
        is_first = len(prefix) < 2
        names.append("/".join(map(str, prefix)) if prefix else "others")
        labels.append(str(prefix[-1]) if prefix and prefix[-1] >= 0 else f"{branch.children:,} others")
        above.append("" if is_first else str(prefix[0]))
        sizes.append(branch.items)
        below = "codes of level 2" if is_first and prefix else "codes of level 3"
        is_rest = not prefix or prefix[-1] < 0
        inside = (
            f"{branch.children:,} prefixes that are not drawn one by one" if is_rest else f"{branch.children:,} {below}"
        )
        examples = "".join(f"<br>· {escape(name[:60])}" for name in branch.examples)
        title = "other codes" if is_rest else f"prefix {'/'.join(map(str, prefix))}"
        texts.append(f"{title}: {branch.items:,} items, {inside}{examples}")
        colours.append(shades[0] if is_first else shades[1])
        assert number == len(names) - 1
    trace = go.Treemap(
        ids=names,
        labels=labels,
        parents=above,
        values=sizes,
        branchvalues="total",
        text=texts,
        textinfo="label",
        hovertemplate="%{text}<extra></extra>",
        marker={"colors": colours, "line": {"color": SURFACE, "width": 1}},
        textfont={"color": INK, "size": 11},
        pathbar={"visible": False},
        tiling={"pad": 2},
        maxdepth=2,
    )
    return figure([trace], 330, {}, {})
