"""Figures of what runs logged and recorded: curves by batch, and batches by time."""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from typing import Any

import plotly.graph_objects as go

from ugt_composer.checkpoint.run_events import BEST, CHECKPOINT, END, FAILED, PREEMPTED, RESUME, START
from ugt_composer.report.figures import (
    MOST_POINTS,
    SURFACE,
    Figure,
    colour_of,
    count_ticks,
    figure,
    line_style,
    log_ticks,
    rounded,
)
from ugt_composer.report.run_folder import Event, Run, Series, sessions


def thinned(series: Series) -> Series:
    """At most MOST_POINTS points, each the mean of as many neighbouring ones."""
    step = -(-len(series.batches) // MOST_POINTS)
    if step <= 1:
        return series
    pieces = range(0, len(series.batches), step)
    return Series(
        [series.batches[min(at + step, len(series.batches)) - 1] for at in pieces],
        [sum(part) / len(part) for part in (series.values[at : at + step] for at in pieces)],
    )


def y_range(values: Iterable[float], from_zero: bool = False) -> list[float] | None:
    """The range of an axis that several panels share; None without values."""
    known = list(values)
    if not known:
        return None
    low, high = (0.0 if from_zero else min(known)), max(known)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 0.1
    return [low if from_zero else low - margin, high + margin]


def curves(
    runs: Sequence[Run],
    numbers: Sequence[int],
    train: str | None,
    evaluation: str | None,
    unit: str,
    shared: list[float] | None = None,
    log: bool = False,
    height: int = 250,
) -> Figure | None:
    """One logged value of the runs of a stage by batch: a line for training, markers for evaluations.

    Args:
        numbers: of the runs to draw.
        train, evaluation: names in metrics.jsonl; None: not drawn.
        unit: title of the y axis.
        shared: range of the y axis.

    Returns:
        None if none of the runs has the value.
    """
    traces = []
    for number in numbers:
        run = runs[number]
        for name, is_evaluation in ((train, False), (evaluation, True)):
            series = run.series.get(name or "")
            if series is None:
                continue
            series = thinned(series)
            what = "evaluation" if is_evaluation else "training"
            traces.append(
                go.Scatter(
                    x=series.batches,
                    y=[rounded(value) for value in series.values],
                    mode="lines+markers" if is_evaluation or len(series.batches) == 1 else "lines",
                    line=line_style(number, width=1.4 if is_evaluation and train else 2),
                    marker={"size": 8, "color": colour_of(number), "line": {"width": 1, "color": SURFACE}},
                    legendgroup=run.name,
                    name=escape(run.name),
                    hovertemplate=f"{escape(run.name)}, {what}<br>batch %{{x:,}}: %{{y:,.4~g}}<extra></extra>",
                )
            )
    if not traces:
        return None
    y: dict[str, Any] = {"text": unit, "nticks": 6, "exponentformat": "e"}
    positive = [value for trace in traces for value in trace.y if value > 0]
    if log and positive and max(positive) >= 4 * min(positive):  # else round numbers would be too rare
        y |= log_ticks(min(positive), max(positive))
    elif shared is not None:
        y["range"] = shared
    last = max(1, *(runs[number].last_batch for number in numbers))  # the same for all values of the stage
    x = {"text": "batch", "range": [-0.02 * last, 1.03 * last], **count_ticks(last)}
    return figure(traces, height, x, y)


SYMBOLS = {  # the figure's symbol, the same as text, and the name
    START: ("circle-open", "○", "start"),
    RESUME: ("triangle-right", "▶", "resume"),
    CHECKPOINT: ("circle", "●", "checkpoint"),
    BEST: ("star", "★", "new best model"),
    PREEMPTED: ("square", "■", "preempted"),
    FAILED: ("x", "✕", "failed"),
    END: ("diamond", "◆", "end"),
}
SIZES = {CHECKPOINT: 7, BEST: 12}


def symbols(runs: Sequence[Run]) -> str:
    """The legend of `timeline`."""
    kinds = {kind for run in runs for _, _, kind, _ in _moments(run)}
    entries = [f"{symbol} {name}" for kind, (_, symbol, name) in SYMBOLS.items() if kind in kinds]
    return "  ".join(entry.replace(" ", "\u00a0") for entry in entries)  # a line ends between entries only


def timeline(runs: Sequence[Run]) -> Figure | None:
    """Batches by the time since the start of each run, with what was recorded; None if no run recorded anything.

    Of a run without events, the checkpoints that are still there are drawn at the times of their files.
    """
    longest = max((_seconds(_moments(run)[0][0], _moments(run)[-1][0]) for run in runs if _moments(run)), default=None)
    if longest is None:
        return None
    unit, per_unit = next(
        (unit for unit in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)) if longest >= 2 * unit[1]),
        ("seconds", 1.0),
    )
    traces = []
    for number, run in enumerate(runs):
        moments = _moments(run)
        if not moments:
            continue
        start = moments[0][0]

        def at(time: datetime, start: datetime = start) -> float:
            return rounded(_seconds(start, time) / per_unit)

        parts = [
            [event for event in run.events if one.begin.time <= event.time <= one.end.time] for one in sessions(run)
        ]
        lines = [[(event.time, event.batch) for event in part] for part in parts] or [[m[:2] for m in moments]]
        for place, line in enumerate(lines):
            traces.append(_time_line(number, run, [at(time) for time, _ in line], [batch for _, batch in line]))
            if place + 1 < len(lines):
                (end, last), (begin, first) = line[-1], lines[place + 1][0]
                pause = _time_line(number, run, [at(end), at(begin)], [last, first], dash="dot", width=1.2)
                traces.append(pause)
        for kind in SYMBOLS:
            points = [moment for moment in moments if moment[2] == kind]
            if not points:
                continue
            traces.append(
                go.Scatter(
                    x=[at(time) for time, *_ in points],
                    y=[batch for _, batch, *_ in points],
                    mode="markers",
                    marker={
                        "symbol": SYMBOLS[kind][0],
                        "size": SIZES.get(kind, 10),
                        "color": colour_of(number),
                        "line": {"width": 1, "color": SURFACE if kind != START else colour_of(number)},
                    },
                    customdata=[[f"{time:%Y-%m-%d %H:%M:%S} UTC", text] for time, _, _, text in points],
                    legendgroup=run.name,
                    showlegend=False,
                    hovertemplate=f"{escape(run.name)}: {SYMBOLS[kind][2]}%{{customdata[1]}}<br>batch %{{y:,}}, "
                    "%{customdata[0]}<extra></extra>",
                )
            )
    x = {"text": f"{unit} since the start of the run", "rangemode": "tozero"}
    y = {"text": "batch", "rangemode": "tozero", **count_ticks(max(run.last_batch for run in runs))}
    return figure(traces, 320, x, y)


def _time_line(number: int, run: Run, x: list[float], y: list[int], **changes: Any) -> Any:
    style = line_style(number, **changes)
    return go.Scatter(x=x, y=y, mode="lines", line=style, legendgroup=run.name, hoverinfo="skip", showlegend=False)


def _moments(run: Run) -> list[tuple[datetime, int, str, str]]:
    """(time, batch, kind, more for the tooltip) of a run's events, or of its files."""
    if run.events:
        return [(event.time, event.batch, event.name, _more(event)) for event in run.events if event.name in SYMBOLS]
    return [(saved.time, saved.batch, CHECKPOINT, f" {saved.name} (time of the file)") for saved in run.saved]


def _more(event: Event) -> str:
    if event.name == CHECKPOINT and "seconds" in event.facts:
        return f", written in {event.facts['seconds']} s"
    if event.name == BEST:
        return f", {escape(str(event.facts.get('metric')))} {event.facts.get('value', math.nan):.4f}"
    return f": {escape(str(event.facts['reason']))}" if "reason" in event.facts else ""


def _seconds(begin: datetime, end: datetime) -> float:
    return (end - begin).total_seconds()
