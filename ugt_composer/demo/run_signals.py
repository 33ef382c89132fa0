"""Trains a model that reads actions and times, and one that does not, on simulated data in which both matter.

What the best possible prediction reaches with and without actions and times is known. Run it from the project's folder;
everything is written below --out. If it is stopped, run it again to resume. See `make demo-signals`.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from ugt_composer.demo.run import best_evaluation, console, heading, metrics_of, run
from ugt_composer.errors import UserError, exit_on_user_error

USERS = 20_000
MODELS: dict[str, tuple[str, ...]] = {
    "without_signals": ("model.num_actions=0", "model.time_buckets=0"),
    "with_signals": (),
}
METRIC = "recall@10"
RESULTS = "results.json"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ugt_composer.demo.run_signals", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("demo-run/signals"), help="output folder (default %(default)s)"
    )
    out = parser.parse_args(arguments).out
    if not Path("train.py").is_file():
        raise UserError("train.py is not in this folder; run the demo from the project's folder")
    started = time.monotonic()
    make_data(out)
    for model, overrides in MODELS.items():
        train(out, model, overrides)
    report(out)
    console.print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. All output is in {out}/.")
    return 0


def make_data(out: Path) -> None:
    heading("Data: simulated customers whose actions and times decide what they take next")
    run(
        *(sys.executable, "convert/make_demo_data.py", "--law", "signals", "--users", USERS),
        *("--out", out / "data", "--overwrite"),
    )
    sizes = map(str, json.loads((out / "data/facts.json").read_text())["codebook_sizes"])
    options = ("--kind", "recommend", "--codebook-sizes", *sizes, "--max-positions", "64", "--overwrite")
    for name in ("train", "eval"):
        source = out / "data" / f"{name}.jsonl"
        run(sys.executable, "convert/jsonl_to_mds.py", source, *options, "--out", out / "mds" / name)


def train(out: Path, model: str, overrides: tuple[str, ...]) -> None:
    heading(f"Model {model.replace('_', ' ')}")
    composer = Path(sys.executable).parent / "composer"
    keys = (
        f"save_folder={out / model}",
        f"data.catalogue={out / 'data/catalogue.jsonl'}",
        f"data.train.local={out / 'mds/train'}",
        f"data.eval.local={out / 'mds/eval'}",
    )
    yamls = ("yamls/stage1.yaml", "yamls/demo.yaml", "yamls/demo_signals.yaml")
    run(composer, "train.py", *yamls, *keys, *overrides)


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


if __name__ == "__main__":
    exit_on_user_error(main)
