"""The sections of the report about training: overview, losses, metrics, speed, time, configuration."""

import json
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from omegaconf import OmegaConf

from ugt_composer.checkpoint.run_events import RESUME
from ugt_composer.config.schema import Config
from ugt_composer.report import run_figures
from ugt_composer.report.figures import Figure
from ugt_composer.report.page import Cell, Html, Plots, Section, absent, note, panels, swatch, table, tile
from ugt_composer.report.results import Result
from ugt_composer.report.run_folder import EVAL, LOSS, TRAIN, Run, Series, sessions
from ugt_composer.report.stages import OBJECTIVES, Stage, objective

RATE, NORM, SPEED = TRAIN + "learning rate", TRAIN + "grad_norm", TRAIN + "samples/s"
LOSS_NAMES = {
    "total": "what the stage minimises (total)",
    "ntp_loss": "next token, all levels",
    "ntp_l1_loss": "next token, level 1",
    "ntp_l2_loss": "next token, level 2",
    "ntp_l3_loss": "next token, level 3",
    "dpo_loss": "preference (DPO)",
    "group_loss": "preference (group)",
    "moe_balance_loss": "balance of the experts",
}
FIRST_LOSSES, FIRST_METRICS = ("ntp_loss", "total"), ("ndcg@10", "recall@10", "mrr", "preference_accuracy")
SHARED = "ntp_"  # losses that are the same sum in all stages, so that their panels share an axis


def overview(runs: Sequence[Run], results: Mapping[int, Result]) -> Section:
    main = len(runs) - 1
    tiles = _tiles(runs[main], results.get(main))
    heads = ["run", "trained for", "state", "best model", "batches", "rows", "rows/s", "began (UTC)", "last sign (UTC)"]
    heads += ["version"]
    rows: list[list[Cell]] = [_overview_row(number, run) for number, run in enumerate(runs)]
    notes = [note(f"{run.name}: {text}") for run in runs for text in run.notes]
    which = f" The figures on top are those of {runs[main].name}, the last one given." if len(runs) > 1 else ""
    lead = (
        "Each run keeps its colour in all figures; the buttons above hide and show runs."
        if len(runs) > 1
        else "What was trained, how far it came, and how good its best model is."
    )
    return Section(
        "overview",
        "Overview",
        "At a glance",
        escape(lead + which),
        tiles + table(heads, rows, texts=(1, 2, 3)) + "".join(notes),
    )


def _tiles(run: Run, result: Result | None) -> str:
    shown = []
    if run.best is not None and run.best.value is not None:
        shown.append((f"{run.best.value:.4f}", f"best {run.best.metric}, at batch {run.best.batch:,}"))
    shown.append(
        (f"{run.last_batch:,}", f"batches, of {run.config.max_duration if run.config else 'an unknown number'}")
    )
    if (rows := run.rows) is not None:
        shown.append((_about(*rows), "rows trained on"))
    if speed := run.series.get(SPEED):
        shown.append((f"{statistics.median(speed.values):,.0f}", "rows per second, median"))
    if accuracy := run.series.get(EVAL + "preference_accuracy"):
        shown.append((f"{accuracy.values[-1]:.1%}", "chosen over rejected, last evaluation"))
    if result is not None and "coverage@10" in result.metrics:
        shown.append(
            (
                f"{result.metrics['coverage@10']:.1%}",
                f"coverage@10: items in the top 10 of any of {result.rows:,} users",
            )
        )
    shown.append((run.state, "how the run ended"))
    return f'<div class="tiles">{"".join(tile(*one) for one in shown)}</div>'


def _overview_row(number: int, run: Run) -> list[Cell]:
    best, config, speed = run.best, run.config, run.series.get(SPEED)
    first = run.events[0].time if run.events else None
    signs = [time for time in (run.written, run.events[-1].time if run.events else None) if time is not None]
    about_best = "none yet"
    if best is not None:
        value = "the latest" if best.value is None else f"{best.metric} {best.value:.4f}"
        about_best = f"{value}, batch {best.batch:,}"
    return [
        Html(f"{swatch(number)} {escape(run.name)}"),
        OBJECTIVES[objective(config)] if config else "?",
        run.state,
        about_best,
        f"{run.last_batch:,}" + (f" of {config.max_duration}" if config else ""),
        "?" if run.rows is None else _about(*run.rows),
        f"{statistics.median(speed.values):,.0f}" if speed else "",
        "" if first is None else f"{first:%Y-%m-%d %H:%M}",
        f"{max(signs):%Y-%m-%d %H:%M}" if signs else "",
        run.version or "?",
    ]


def _about(rows: int, is_exact: bool) -> str:
    return f"{rows:,}" if is_exact else f"≈ {rows:,}"


def losses(runs: Sequence[Run], stages: Sequence[Stage], plots: Plots) -> Section:
    lead = (
        "<strong>Line:</strong> loss of the training batch. <strong>Markers:</strong> the same loss on the evaluation "
        "data. Both should fall; if the markers rise while the line falls, the model overfits."
    )
    title = "Does it learn?"
    options = {name: _loss_option(name, runs, stages) for name in _loss_names(runs)}
    if not options:
        return Section("losses", "Losses", title, "", absent("No loss was logged yet."))
    accuracies = {name: _accuracy_option(name, runs, stages) for name in _accuracy_names(runs)}
    body = plots.chosen("loss", options, [stage.title for stage in stages])
    if accuracies:
        body += (
            "<h3>Accuracy on training batches</h3><p class='muted'>How often the model's first choice is right: of a "
            "level's id, given those above it; of the right item among the others of the batch; of the chosen item of "
            "a pair.</p>"
        )
        body += plots.chosen("accuracy", accuracies, [stage.title for stage in stages])
    return Section("losses", "Losses", title, lead, body)


def _loss_names(runs: Sequence[Run]) -> list[str]:
    """Losses that are not always 0, the most informative first."""
    names = dict.fromkeys(name for run in runs for name, series in run.series.items() if any(series.values))
    parts = [name.removeprefix(LOSS) for name in names if name.startswith(LOSS)]
    return sorted(parts, key=lambda name: _place(name, (*FIRST_LOSSES, *LOSS_NAMES)))


def _place(name: str, first: Sequence[str]) -> int:
    return first.index(name) if name in first else len(first)


def _loss_option(name: str, runs: Sequence[Run], stages: Sequence[Stage]) -> tuple[str, list[Figure | None]]:
    train, evaluation = LOSS + name, EVAL + ("loss" if name == "total" else name)
    shared = None
    if name.startswith(SHARED):
        shared = run_figures.y_range(v for run in runs for key in (train, evaluation) for v in _values(run, key))
    label = LOSS_NAMES.get(name, name.removesuffix("_loss").replace("_", " "))
    panels = [run_figures.curves(runs, stage.runs, train, evaluation, "loss (nats)", shared) for stage in stages]
    return label, panels


def _accuracy_names(runs: Sequence[Run]) -> list[str]:
    names = dict.fromkeys(name for run in runs for name in run.series if name.startswith(TRAIN))
    return [name.removeprefix(TRAIN) for name in names if "acc" in name]


def _accuracy_option(name: str, runs: Sequence[Run], stages: Sequence[Stage]) -> tuple[str, list[Figure | None]]:
    label = name.replace("_acc", "").replace("_", " ").replace("ntp l", "id of level ").replace("uracy", "")
    train, evaluation = TRAIN + name, EVAL + name
    shared = run_figures.y_range(
        (v for run in runs for key in (train, evaluation) for v in _values(run, key)), from_zero=True
    )
    return label, [run_figures.curves(runs, stage.runs, train, evaluation, "fraction", shared) for stage in stages]


def _values(run: Run, name: str) -> list[float]:
    return run.series.get(name, Series()).values


def metrics(runs: Sequence[Run], stages: Sequence[Stage], plots: Plots) -> Section:
    title = "Does it rank better?"
    names = dict.fromkeys(n.removeprefix(EVAL) for run in runs for n in run.series if n.startswith(EVAL))
    ranking = [name for name in names if not name.endswith("loss")]
    if not ranking:
        text = "No evaluation was logged: the runs have no data.eval, or none was due yet (eval_interval)."
        return Section("metrics", "Metrics", title, "", absent(text))
    best = [run.best.metric for run in reversed(runs) if run.best is not None and run.best.metric in ranking]
    ranking.sort(key=lambda name: _place(name, (*best[:1], *FIRST_METRICS)))
    options = {}
    for name in ranking:
        shared = run_figures.y_range(v for run in runs for v in _values(run, EVAL + name))
        panels = [run_figures.curves(runs, stage.runs, None, EVAL + name, name, shared) for stage in stages]
        options[name] = (name, panels)
    lead = "Each marker is an evaluation on all rows of data.eval. " + _improvement(runs, ranking[0])
    side = "The panels share their axis, so that stages can be compared. " if len(stages) > 1 else ""
    body = plots.chosen("metric", options, [stage.title for stage in stages])
    return Section("metrics", "Metrics", title, lead + side, body)


def _improvement(runs: Sequence[Run], name: str) -> str:
    said = []
    for run in runs:
        values = _values(run, EVAL + name)
        if len(values) > 1:
            said.append(f"{escape(run.name)} from {values[0]:.4f} to {values[-1]:.4f}")
        elif values:
            said.append(f"{escape(run.name)} {values[0]:.4f}")
    return f"<strong>{escape(name)}</strong>, first to last evaluation: {'; '.join(said)}. " if said else ""


def speed(runs: Sequence[Run], stages: Sequence[Stage], plots: Plots) -> Section:
    title = "Is training stable and fast?"
    rows = (
        ("Learning rate", RATE, "learning rate", "rises during warm-up and then follows the schedule."),
        (
            "Gradient norm",
            NORM,
            "norm",
            "before clipping, on a log scale if it varies much. Peaks are clipped; a lasting rise warns of divergence.",
        ),
        (
            "Throughput",
            SPEED,
            "rows/s",
            "without evaluations; it dips where a save, slow data or other work on the machine takes time.",
        ),
    )
    body = []
    for caption, name, unit, text in rows:
        if not any(name in run.series for run in runs):
            body.append(absent(f"{caption}: not logged yet."))
            continue
        shared = run_figures.y_range((v for run in runs for v in _values(run, name)), from_zero=True)
        # Learning rates of stages differ by orders of magnitude: each panel has its own axis.
        one_axis = shared if name == SPEED else None
        parts = [
            plots.panel(
                run_figures.curves(runs, stage.runs, name, None, unit, one_axis, name == NORM, height=190), stage.title
            )
            for stage in stages
        ]
        body.append(f"<h3>{caption}</h3><p class='muted'>{text[0].upper()}{escape(text[1:])}</p>{panels(parts)}")
    return Section("speed", "Speed", title, "", "".join(body))


def time(runs: Sequence[Run], plots: Plots) -> Section:
    title = "When did it save, stop and resume?"
    figure = run_figures.timeline(runs)
    if figure is None:
        text = "No events.jsonl and no checkpoints: runs of this version record when they start, save and resume."
        return Section("time", "Time", title, "", absent(text))
    lead = (
        "Progress by wall-clock time: a steep line is fast training, a dotted one a pause between two starts, and a "
        "step down the batches that were lost, because they came after the checkpoint from which the run resumed."
    )
    body = panels([plots.panel(figure, "Batches by time", run_figures.symbols(runs))], wide=True)
    for run in runs:
        if not run.events and run.saved:
            body += note(f"{run.name} has no events.jsonl; its checkpoints are drawn at the times of their files.")
    rows: list[list[Cell]] = []
    for number, run in enumerate(runs):
        for place, session in enumerate(sessions(run), start=1):
            seconds = (session.end.time - session.begin.time).total_seconds()
            facts = session.begin.facts
            rows.append(
                [
                    Html(f"{swatch(number)} {escape(run.name)}, start {place}"),
                    f"{session.begin.time:%Y-%m-%d %H:%M:%S}",
                    duration(seconds),
                    ("resumed at " if session.begin.name == RESUME else "") + f"{session.begin.batch:,}",
                    f"{session.end.batch:,}",
                    session.how,
                    f"{session.lost:,}" if session.lost else "none",
                    str(facts.get("ranks", "?")),
                    str(facts.get("version", "?")),
                ]
            )
    heads = ["start", "began (UTC)", "took", "from batch", "to batch", "then", "batches lost", "ranks", "version"]
    return Section("time", "Time", title, lead, body + (table(heads, rows, texts=(5,)) if rows else ""))


def duration(seconds: float) -> str:
    """Such as "1 h 05 min", "3 min 20 s", "12 s"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def configuration(runs: Sequence[Run]) -> Section:
    title = "What was set?"
    known = [(number, run, flat(OmegaConf.structured(run.config))) for number, run in enumerate(runs) if run.config]
    if not known:
        return Section("config", "Config", title, "", absent("No run has a config.yaml that this version can read."))
    defaults = flat(OmegaConf.structured(Config))
    keys = dict.fromkeys([*defaults, *(key for *_, values in known for key in values)])
    rows: list[list[Cell]] = []
    marked = []
    for key in keys:
        own = [values.get(key) for *_, values in known]
        if all(value == defaults.get(key) for value in own):
            continue
        if any(value != own[0] for value in own):
            marked.append(len(rows))
        default = _shown(defaults.get(key))
        cells = [
            Html(f'<span class="muted">{escape(default)}</span>') if _shown(v) == default else _shown(v) for v in own
        ]
        rows.append(
            [Html(f"<code>{escape(key)}</code>"), Html(f'<span class="muted">{escape(default)}</span>'), *cells]
        )
    same = len(keys) - len(rows)
    lead = (
        f"Keys that differ from the default in at least one run; the other {same:,} have their default in all of them. "
    )
    if len(known) > 1:
        lead += "Rows with a background differ <strong>between the runs</strong>."
    heads = ["key", "default", *(run.name for _, run, _ in known)]
    return Section("config", "Config", title, lead, table(heads, rows, range(len(heads)), marked))


def flat(tree: Any) -> dict[str, Any]:
    """The values of a config by their dotted keys; lists and free-form sections are values of their own."""
    container = OmegaConf.to_container(tree, throw_on_missing=False) if OmegaConf.is_config(tree) else tree
    values: dict[str, Any] = {}

    def add(node: Any, name: str) -> None:
        if isinstance(node, dict) and node:
            for key, inner in node.items():
                add(inner, f"{name}.{key}" if name else str(key))
        else:
            values[name] = list(node) if isinstance(node, tuple) else node

    add(container, "")
    return values


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return "; ".join(", ".join(f"{k}: {_shown(v)}" for k, v in one.items() if v is not None) for one in value)
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else str(value)
