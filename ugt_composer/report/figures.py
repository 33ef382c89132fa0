"""The form of the report's figures: JSON objects that plotly.js draws.

Colours are those of the light page; `page.js` replaces each by its twin on the dark one (`DARK`). A run has the same
colour in all figures. The colours of runs are distinct for colour-blind readers (after Okabe and Ito, darkened to be
readable on white); more runs than colours are told apart by dashes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

Figure = dict[str, Any]  # data and layout

INK, MUTED, GRID, SURFACE = "#1c2733", "#5c6975", "#dfe5ec", "#ffffff"
RUNS = {"#0072b2": "#56b4e9", "#c44f00": "#ff9a5c", "#00805d": "#3fd1a4", "#a2409a": "#e79bdb", "#8a6d00": "#e8cf4a"}
SHADES = {"#cfe3f2": "#1d3a52", "#9fc7e4": "#2b5b80"}  # of the tree: first and second level
DARK = {INK: "#e4eaf1", MUTED: "#9aa8b7", GRID: "#2c3845", SURFACE: "#161d26", **RUNS, **SHADES}
DASHES = ("solid", "dash", "dot")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
MOST_POINTS = 600  # of a line


def colour_of(number: int) -> str:
    return list(RUNS)[number % len(RUNS)]


def line_style(number: int, **changes: Any) -> dict[str, Any]:
    return {"color": colour_of(number), "dash": DASHES[number // len(RUNS) % len(DASHES)], "width": 2, **changes}


def rounded(value: float) -> float:
    """Six digits, which is more than a figure shows."""
    return float(f"{value:.6g}")


def figure(traces: Sequence[Any], height: int, x: Mapping[str, Any], y: Mapping[str, Any], **layout: Any) -> Figure:
    axis = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "automargin": True,
        "tickfont": {"size": 11, "color": MUTED},
        "title": {"font": {"size": 12, "color": MUTED}, "standoff": 8},
    }
    drawn = go.Figure(
        list(traces),
        {
            "template": "none",
            "height": height,
            "margin": {"l": 8, "r": 10, "t": 8, "b": 8},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": FONT, "size": 12, "color": INK},
            "hoverlabel": {"bgcolor": SURFACE, "bordercolor": GRID, "font": {"color": INK, "size": 12}},
            "hovermode": "closest",
            "showlegend": False,
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 11}},
            "xaxis": _merged(axis, x),
            "yaxis": _merged(axis, y),
            **layout,
        },
    )
    return dict(json.loads(drawn.to_json()))


def _merged(axis: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    changes = dict(changes)
    text = changes.pop("text", None)
    title = {**axis["title"], **({} if text is None else {"text": text})}
    return {**axis, **changes, "title": title}


def count_ticks(largest: int) -> dict[str, Any]:
    """An axis of whole numbers."""
    ticks: dict[str, Any] = {"dtick": 1} if largest < 6 else {"nticks": 6}
    return {**ticks, "tickformat": ",d" if largest < 100_000 else "~s"}


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis with few ticks at round numbers, but at least three."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values: list[float] = []
    for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 6, 8)):
        values = [rounded(factor * 10.0**power) for power in powers for factor in factors]
        if sum(low <= value <= high for value in values) >= 3:
            break
    return {"type": "log", "tickvals": values, "ticktext": [f"{value:,g}" for value in values]}
