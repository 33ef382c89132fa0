"""Runs all steps on simulated data: makes data and shards, trains three stages, reports results. See `make demo`.

Run it from the project's folder; everything is written below --out. If it is stopped, run it again to resume.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from ugt_composer.checkpoint.portable import WEIGHTS
from ugt_composer.errors import UserError, exit_on_user_error

SHARDS = {"train": "recommend", "eval": "recommend", "preference_train": "preference", "preference_eval": "preference"}
# Overrides of each stage in addition to its YAML and yamls/demo.yaml.
STAGES: dict[int, tuple[str, ...]] = {
    1: ("max_duration=4ep", "optimizer.lr=3e-3"),
    2: ("max_duration=2ep", "optimizer.lr=5e-4"),
    3: ("max_duration=1ep", "optimizer.lr=5e-4", "eval_interval=40ba"),
}
console = Console()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ugt_composer.demo.run", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-run"), help="output folder (default demo-run)")
    out = parser.parse_args().out
    if not Path("train.py").is_file():
        raise UserError("train.py is not in this folder; run the demo from the project's folder")
    started = time.monotonic()
    make_data(out)
    for stage in STAGES:
        train(out, stage)
    report(out)
    recommend(out)
    console.print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. All output is in {out}/.")
    return 0


def make_data(out: Path) -> None:
    """Makes the JSON Lines files and converts them to shards."""
    heading("Data: simulated customers with a known behaviour, so that the best possible result is known too")
    run(sys.executable, "convert/make_demo_data.py", "--out", out / "data", "--overwrite")
    sizes = map(str, json.loads((out / "data/facts.json").read_text())["codebook_sizes"])
    options = ("--codebook-sizes", *sizes, "--max-positions", "64", "--overwrite")
    for name, kind in SHARDS.items():
        source, target = out / "data" / f"{name}.jsonl", out / "mds" / name
        run(sys.executable, "convert/jsonl_to_mds.py", source, "--kind", kind, *options, "--out", target)


def train(out: Path, stage: int) -> None:
    heading(f"Stage {stage}")
    mds = out / "mds"
    evaluation = f"data.eval.streams=[{{local: {mds / 'eval'}}},{{local: {mds / 'preference_eval'}}}]"
    overrides = [
        f"save_folder={out / f'stage{stage}'}",
        f"data.catalogue={out / 'data/catalogue.jsonl'}",
        "data.eval.local=null",
        evaluation,
    ]
    if stage == 3:
        streams = (
            f"[{{local: {mds / 'preference_train'}, proportion: 0.5}},{{local: {mds / 'train'}, proportion: 0.5}}]"
        )
        overrides.append(f"data.train.streams={streams}")
    else:
        overrides.append(f"data.train.local={mds / 'train'}")
    if stage > 1:
        overrides.append(f"init_from={out / f'stage{stage - 1}' / 'best'}")
    if stage == 3:
        overrides.append(f"loss.reference_from={out / 'stage2' / 'best'}")
    composer = Path(sys.executable).parent / "composer"
    run(composer, "train.py", f"yamls/stage{stage}.yaml", "yamls/demo.yaml", *overrides, *STAGES[stage])


def report(out: Path) -> None:
    """Prints losses, ranking metrics with their bounds, and preference accuracy before and after stage 3."""
    facts = json.loads((out / "data/facts.json").read_text())
    lines = {stage: metrics_of(out / f"stage{stage}") for stage in STAGES}
    best = {stage: best_evaluation(out / f"stage{stage}", lines[stage]) for stage in STAGES}

    losses = Table("", "first", "last", title="Training loss", title_justify="left")
    for stage, name in ((1, "ntp_loss"), (2, "contrastive_loss"), (3, "dpo_loss")):
        series = [line[f"loss/train/{name}"] for line in lines[stage] if f"loss/train/{name}" in line]
        losses.add_row(f"stage {stage}, {name}", f"{series[0]:.4f}", f"{series[-1]:.4f}")

    ranking = Table("", "recall@10", "ndcg@10", title="Next item, customers not seen in training", title_justify="left")
    rows = {"popularity": facts["popularity"]}
    rows |= {
        f"stage {stage}": {m: best[stage][f"metrics/eval/{m}"] for m in ("recall@10", "ndcg@10")} for stage in STAGES
    }
    rows["best possible"] = facts["ceiling"]
    for name, values in rows.items():
        ranking.add_row(name, f"{values['recall@10']:.4f}", f"{values['ndcg@10']:.4f}")

    pairs = Table("", "accuracy", title="Chosen over rejected, pairs not seen in training", title_justify="left")
    pairs.add_row("before stage 3", f"{best[2]['metrics/eval/preference_accuracy']:.4f}")
    pairs.add_row("after stage 3", f"{best[3]['metrics/eval/preference_accuracy']:.4f}")
    pairs.add_row("best possible", f"{facts['preference_ceiling']:.4f}")
    heading("Results")
    for table in (losses, ranking, pairs):
        console.print(table)


def recommend(out: Path) -> None:
    """Prints ten recommendations for the first customer of the evaluation data."""
    heading("Ten recommendations")
    catalogue = [json.loads(line) for line in (out / "data/catalogue.jsonl").read_text("utf-8").splitlines()]
    item_of = {(item["l1_id"], item["l2_id"], item["l3_id"]): item for item in catalogue}
    with (out / "data/eval.jsonl").open(encoding="utf-8") as file:
        row = json.loads(file.readline())
    triples = list(zip(*(row[f"encoder_l{level}_ids"] for level in (1, 2, 3)), strict=True))[1:]
    items = [item_of[triple] for triple in triples]
    console.print(f"{row['user_id']} took, oldest first: {'; '.join(item['name'] for item in items[-8:])}")
    history = out / "history.json"
    history.write_text(json.dumps({"user_id": row["user_id"], "items": [item["item_id"] for item in items]}), "utf-8")
    ugt = Path(sys.executable).parent / "ugt"
    run(ugt, "recommend", "--checkpoint", out / "stage3/best", "--history", history, "-k", "10")


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def best_evaluation(folder: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The logged evaluation at the batch at which best/ was saved."""
    with safe_open(folder / "best" / WEIGHTS, "pt") as file:
        batch = int(file.metadata()["batch"])
    return next(line for line in lines if line["batch"] == batch and "metrics/eval/recall@10" in line)


def heading(text: str) -> None:
    console.print()
    console.rule(f"[bold]{text}", align="left")


def run(*command: Any) -> None:
    """Prints a command as a user would type it, and runs it; if it fails, the demo exits with its exit status."""
    words = [str(word) for word in command]
    quoted = [Path(words[0]).name, *(shlex.quote(word) for word in words[1:])]
    console.print("$ " + " ".join(quoted), style="cyan", highlight=False, markup=False, soft_wrap=True)
    sys.stdout.flush()
    status = subprocess.run(words, check=False).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    exit_on_user_error(main)
