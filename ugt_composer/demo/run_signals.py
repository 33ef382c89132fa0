"""Trains a model that reads actions and times, and one that does not, on simulated data in which both matter.

What the best possible prediction reaches with and without actions and times is known. See `ugt demo --law signals`.
"""

import json
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from ugt_composer.demo.run import best_evaluation, console, heading, metrics_of, run, train_stage

USERS = 20_000
MODELS: dict[str, tuple[str, ...]] = {
    "without_signals": ("model.num_actions=0", "model.time_buckets=0"),
    "with_signals": (),
}
METRIC = "recall@10"
RESULTS = "results.json"


def run_demo(out: Path) -> None:
    started = time.monotonic()
    make_data(out)
    for model, overrides in MODELS.items():
        train(out, model, overrides)
    report(out)
    console.print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. All output is in {out}/.")


def make_data(out: Path) -> None:
    heading("Data: simulated customers whose actions and times decide what they take next")
    run("ugt", "init", out, "--overwrite")
    run("ugt", "demo-data", "--law", "signals", "--users", USERS, "--out", out / "data", "--overwrite")
    sizes = map(str, json.loads((out / "data/facts.json").read_text())["codebook_sizes"])
    options = ("--kind", "recommend", "--codebook-sizes", *sizes, "--max-positions", "64", "--overwrite")
    for name in ("train", "eval"):
        source = out / "data" / f"{name}.jsonl"
        run("ugt", "convert", source, *options, "--out", out / "mds" / name)


def train(out: Path, model: str, overrides: tuple[str, ...]) -> None:
    heading(f"Model {model.replace('_', ' ')}")
    keys = (
        f"save_folder={out / model}",
        f"data.catalogue={out / 'data/catalogue.jsonl'}",
        f"data.train.local={out / 'mds/train'}",
        f"data.eval.local={out / 'mds/eval'}",
    )
    train_stage(out, 1, ["demo.yaml", "demo_signals.yaml"], [*keys, *overrides])


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
