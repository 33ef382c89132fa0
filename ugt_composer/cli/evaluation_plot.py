"""Plots an evaluation: recall and ndcg by k, and by the length of the history."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ugt_composer.errors import UserError


def draw(report: dict[str, Any], path: Path) -> None:
    """Plots the report of `ugt evaluate --json` into a PNG file. Raises UserError if no row was ranked."""
    if not report["by_history_length"]:
        raise UserError("--plot has nothing to plot: no row was ranked; expected recommend rows in --data")
    figure = Figure(figsize=(11, 4), layout="constrained")  # not pyplot, which has global state and may open a window
    curves, bars = figure.subplots(1, 2)
    for name in ("recall", "ndcg"):
        curves.plot(
            report["k_values"], [report["metrics"][f"{name}@{k}"] for k in report["k_values"]], "o-", label=name
        )
    curves.set(xlabel=f"k, over {report['ranked_rows']:,} users", xticks=report["k_values"])
    rows = report["by_history_length"]
    names = [name for name in rows[0] if "@" in name]
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        starts = [at + (place - (len(names) - 1) / 2) * width for at in range(len(rows))]
        bars.bar(starts, [row[name] for row in rows], width, label=name)
    ticks = [f"{row['length']}\n{row['users']:,} users" for row in rows]
    bars.set_xticks(range(len(rows)), ticks)
    bars.set_xlabel("items in the history")
    for axes in (curves, bars):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(names), frameon=False)
    figure.savefig(path, dpi=120)
