"""Runs all steps on simulated data: makes data and shards, trains three stages, reports results. See `ugt demo`."""

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from ugt_composer.checkpoint.save_folder import METRICS, WEIGHTS
from ugt_composer.command import program
from ugt_composer.config.shipped import FOLDER
from ugt_composer.errors import EXIT_PREEMPTED
from ugt_composer.job.child import Children, Preempted

SHARDS = {"train": "recommend", "eval": "recommend", "preference_train": "preference", "preference_eval": "preference"}
# Overrides of each stage in addition to its YAML and demo.yaml.
STAGES: dict[int, tuple[str, ...]] = {
    1: ("max_duration=4ep", "optimizer.lr=3e-3"),
    2: ("max_duration=2ep", "optimizer.lr=5e-4"),
    3: ("max_duration=1ep", "optimizer.lr=5e-4", "eval_interval=40ba"),
}
console = Console()


def run_demo(children: Children, out: Path) -> None:
    """Raises Preempted if a signal arrived: another call with the same folder resumes."""
    started = time.monotonic()
    make_data(children, out)
    for stage in STAGES:
        train(children, out, stage)
    report(out)
    recommend(children, out)
    console.print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. All output is in {out}/.")
    console.print("Your own data: ugt import --help", markup=False)


def make_data(children: Children, out: Path) -> None:
    """Makes the JSON Lines files and converts them to shards."""
    heading("Data: simulated customers with a known behaviour, so that the best possible result is known too")
    run(children, "ugt", "init", out, "--overwrite")
    run(children, "ugt", "demo-data", "--out", out / "data", "--overwrite")
    sizes = map(str, json.loads((out / "data/facts.json").read_text())["codebook_sizes"])
    options = ("--codebook-sizes", *sizes, "--max-positions", "64", "--overwrite")
    for name, kind in SHARDS.items():
        source, target = out / "data" / f"{name}.jsonl", out / "mds" / name
        run(children, "ugt", "convert", source, "--kind", kind, *options, "--out", target)


def train(children: Children, out: Path, stage: int) -> None:
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
    train_stage(children, out, stage, ["demo.yaml"], [*overrides, *STAGES[stage]])


def train_stage(children: Children, out: Path, stage: int, yamls: Sequence[str], overrides: Sequence[str]) -> None:
    """Args: yamls: names of the shipped files that follow the stage's own."""
    paths = [out / FOLDER / name for name in (f"stage{stage}.yaml", *yamls)]
    run(children, "composer", "-c", "ugt", "train", *paths, *overrides)


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


def recommend(children: Children, out: Path) -> None:
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
    run(children, "ugt", "recommend", "--checkpoint", out / "stage3/best", "--history", history, "-k", "10")


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text("utf-8").splitlines()]


def best_evaluation(folder: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The logged evaluation at the batch at which best/ was saved."""
    with safe_open(folder / "best" / WEIGHTS, "pt") as file:
        batch = int(file.metadata()["batch"])
    return next(line for line in lines if line["batch"] == batch and "metrics/eval/recall@10" in line)


def heading(text: str) -> None:
    console.print()
    console.rule(f"[bold]{text}", align="left")


def run(children: Children, *command: Any) -> None:
    """Prints a command as a user would type it, and runs it; if it fails, the demo exits with its exit status.

    Raises:
        Preempted: it ended with status 75, or a signal arrived.
    """
    words = [str(word) for word in command]
    console.print(f"$ {shlex.join(words)}", style="cyan", highlight=False, markup=False, soft_wrap=True)
    sys.stdout.flush()
    programs = os.pathsep.join([str(Path(program("ugt")).parent), os.environ.get("PATH", os.defpath)])
    status = children.exit_status([program(words[0]), *words[1:]], environment=os.environ | {"PATH": programs})
    if status == EXIT_PREEMPTED:
        raise Preempted
    if status:
        sys.exit(status)
