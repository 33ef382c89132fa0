"""Trains a model that reads actions and times, and one that does not, on simulated data in which both matter.

What the best possible prediction reaches with and without actions and times is known. See `ugt demo --law signals`.
"""

import json
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from ugt_composer.demo.run import best_evaluation, console, heading, metrics_of, run, train_stage
from ugt_composer.job.child import Children

USERS = 20_000
MODELS: dict[str, tuple[str, ...]] = {
    "without_signals": ("model.num_actions=0", "model.time_buckets=0"),
    "with_signals": (),
}
METRIC = "recall@10"
RESULTS = "results.json"


def run_demo(children: Children, out: Path) -> None:
    """Raises Preempted if a signal arrived: another call with the same folder resumes."""
    started = time.monotonic()
    make_data(children, out)
    for model, overrides in MODELS.items():
        train(children, out, model, overrides)
    report(out)
    console.print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. All output is in {out}/.")


def make_data(children: Children, out: Path) -> None:
    heading("Data: simulated customers whose actions and times decide what they take next")
    run(children, "ugt", "init", out, "--overwrite")
    run(children, "ugt", "demo-data", "--law", "signals", "--users", USERS, "--out", out / "data", "--overwrite")
    sizes = map(str, json.loads((out / "data/facts.json").read_text())["codebook_sizes"])
    options = ("--kind", "recommend", "--codebook-sizes", *sizes, "--max-positions", "64", "--overwrite")
    for name in ("train", "eval"):
        source = out / "data" / f"{name}.jsonl"
        run(children, "ugt", "convert", source, *options, "--out", out / "mds" / name)


def train(children: Children, out: Path, model: str, overrides: tuple[str, ...]) -> None:
    heading(f"Model {model.replace('_', ' ')}")
    keys = (
        f"save_folder={out / model}",
        f"data.catalogue={out / 'data/catalogue.jsonl'}",
        f"data.train.local={out / 'mds/train'}",
        f"data.eval.local={out / 'mds/eval'}",
    )
    train_stage(children, out, 1, ["demo.yaml", "demo_signals.yaml"], [*keys, *overrides])


def report(out: Path) -> None:
    """Prints the metrics of both models with their bounds, and writes them to RESULTS."""
    facts = json.loads((out / "data/facts.json").read_text())
    scores: dict[str, dict[str, float]] = {"popularity": facts["popularity"]}
    for model in MODELS:
        best = best_evaluation(out / model, metrics_of(out / model))
        scores[f"model_{model}"] = {name: best[f"metrics/eval/{name}"] for name in facts["popularity"]}
    scores |= {name: values for name, values in facts.items() if name.startswith("ceiling")}
    fraction = fraction_of_difference(scores)
    table = Table("", *facts["popularity"], title="Next item, customers not seen in training", title_justify="left")
    for name, values in scores.items():
        title = name.replace("ceiling", "best possible").replace("_", " ")
        table.add_row(title, *(f"{value:.4f}" for value in values.values()))
    heading("Results")
    console.print(table)
    console.print(
        f"The model with signals takes {fraction:.0%} of the difference that actions and times make possible."
    )
    results: dict[str, Any] = {"scores": scores, "fraction_of_difference": round(fraction, 4)}
    (out / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def fraction_of_difference(scores: dict[str, dict[str, float]]) -> float:
    """How much of the difference between the best possible predictions without and with signals the model takes."""
    without, best = (scores[f"ceiling_{name}"][METRIC] for name in MODELS)
    return (scores["model_with_signals"][METRIC] - without) / (best - without)
