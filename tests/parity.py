"""Claim: every strategy trains the same model, and a checkpoint of any strategy resumes under any other.

Each stage is trained by one process, then by two ranks under each strategy, on the same data and from the same seed, in
float32 without dropout and without an expert capacity. The first table shows the largest relative difference of any
loss, gradient norm or evaluation metric from the run of one process. For the second table, the checkpoint that each
strategy saved in the middle of stage 3 resumes under every strategy; the steps after it are compared with an
uninterrupted run. Needs no GPU.

    python -m tests.parity [--steps 32] [--d-model 32] [--layers 2] [--seed 42] [--microbatches 1] [--out FOLDER]
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BOUND = 1e-5
BASE = "one-process"
# All but the first on two ranks.
STRATEGIES: dict[str, tuple[str, ...]] = {
    BASE: (),
    "DDP": ("parallelism.strategy=ddp",),
    "FSDP2": ("parallelism.strategy=fsdp",),
    **{
        f"ZeRO-{stage}": ("parallelism.strategy=deepspeed", f"parallelism.deepspeed.zero_stage={stage}")
        for stage in (1, 2, 3)
    },
}
OTHERS = [name for name in STRATEGIES if name != BASE]
# Which of two nearly equal numbers is larger depends on rounding.
DECIDED_BY_ROUNDING = ("samples/s", "dpo_accuracy", "dpo_reward_margin", "_u2i_acc", "_i2u_acc")
STAGES = (1, 2, 3)
NO_EVALUATION = "data.eval.streams=[]"
ROWS = 64  # of a global batch

Job = dict[str, Any]  # yaml and overrides; load: a checkpoint or None; stop: batches to train or None, 0 only evaluates


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=32, help="batches of each run")
    parser.add_argument("--d-model", type=int, default=32)
    parser.add_argument("--layers", type=int, default=2, help="layers in each of encoder and decoder")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--microbatches", type=int, default=1, help="microbatches of one process; each of two ranks takes half as many"
    )
    parser.add_argument("--out", type=Path, help="folder for data and runs; default: a temporary one")
    parser.add_argument("--jobs", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error(
            f"--steps is {arguments.steps}; expected 2 or more, so that there is a checkpoint in the middle of a run"
        )
    if arguments.jobs:
        return work(json.loads(arguments.jobs.read_text()))
    if arguments.out:
        return compare(arguments, arguments.out)
    with tempfile.TemporaryDirectory() as folder:
        return compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, out: Path) -> int:
    make_data(out, arguments.seed)
    common = common_overrides(out, arguments)
    pairs = [(saved, name) for saved in STRATEGIES for name in STRATEGIES]
    launch(1, base_jobs(out, common), out)
    launch(2, other_jobs(out, common, arguments.steps, pairs), out)
    launch(1, resume_jobs(out, common, arguments.steps, [pair for pair in pairs if pair[1] == BASE]), out)
    parity = {name: [difference(out, stage, name) for stage in STAGES] for name in OTHERS}
    resumed = {pair: resume_difference(out, arguments.steps, *pair) for pair in pairs}

    console = Console()
    table = Table("", *(f"stage {stage}" for stage in STAGES), title=f"Largest relative difference from {BASE}")
    for name, values in parity.items():
        table.add_row(name, *(f"{value:.1e}" for value in values))
    console.print(table)
    table = Table("saved under, resumed under", *STRATEGIES, title="Largest relative difference after resuming")
    for saved in STRATEGIES:
        table.add_row(saved, *(f"{resumed[saved, name]:.1e}" for name in STRATEGIES))
    console.print(table)
    largest = max(max(value for values in parity.values() for value in values), *resumed.values())
    console.print(f"largest {largest:.1e}, bound {BOUND:.0e}")
    return 0 if largest <= BOUND else 1


def base_jobs(out: Path, common: list[str]) -> list[Job]:
    """The jobs of one process: every stage."""
    return [stage_job(out, stage, BASE, common) for stage in STAGES]


def other_jobs(
    out: Path, common: list[str], steps: int, pairs: list[tuple[str, str]], stages: Sequence[int] = STAGES
) -> list[Job]:
    """The jobs of two ranks: every strategy in each of the stages, and runs that resume from the middle of stage 3."""
    return [
        *(stage_job(out, stage, name, common) for stage in stages for name in OTHERS),
        *resume_jobs(out, common, steps, [pair for pair in pairs if pair[1] != BASE]),
    ]


def middle_checkpoint(out: Path, name: str, steps: int) -> Path:
    return out / "stage3" / name / f"ba{steps // 2:08d}.pt"


def resume_jobs(out: Path, common: list[str], steps: int, pairs: list[tuple[str, str]]) -> list[Job]:
    """The jobs that resume, for pairs (saved under, resumed under)."""
    return [
        stage_job(out, 3, name, [*common, NO_EVALUATION], f"resumed/{saved}/{name}")
        | {"load": str(middle_checkpoint(out, saved, steps))}
        for saved, name in pairs
    ]


def difference(out: Path, stage: int, name: str) -> float:
    return largest_difference(metrics_of(out / f"stage{stage}" / BASE), metrics_of(out / f"stage{stage}" / name))


def resume_difference(out: Path, steps: int, saved: str, name: str) -> float:
    base = [line for line in training_of(out / "stage3" / BASE) if line["batch"] > steps // 2]
    return largest_difference(base, metrics_of(out / "stage3/resumed" / saved / name))


def make_data(out: Path, seed: int, users: int = 1500) -> None:
    from convert.jsonl_to_mds import main as convert
    from convert.make_demo_data import main as make

    if (out / "mds").exists():
        return
    assert make(["--out", str(out / "data"), "--users", str(users), "--eval-users", "45", "--seed", str(seed)]) == 0
    sizes = [str(size) for size in json.loads((out / "data/facts.json").read_text())["codebook_sizes"]]
    for name in ("train", "eval", "preference_train", "preference_eval"):
        kind = "preference" if "preference" in name else "recommend"
        options = ["--kind", kind, "--codebook-sizes", *sizes, "--max-positions", "64"]
        assert convert([str(out / "data" / f"{name}.jsonl"), *options, "--out", str(out / "mds" / name)]) == 0


def common_overrides(out: Path, arguments: argparse.Namespace) -> list[str]:
    return [
        f"data.catalogue={out / 'data/catalogue.jsonl'}",
        "data.eval.local=null",
        f"data.eval.streams=[{{local: {out / 'mds/eval'}}},{{local: {out / 'mds/preference_eval'}}}]",
        "data.train.num_workers=0",
        f"global_train_batch_size={ROWS}",
        f"device_train_microbatch_size={ROWS // arguments.microbatches}",
        f"seed={arguments.seed}",
        f"model.d_model={arguments.d_model}",
        f"model.d_ff={2 * arguments.d_model}",
        f"model.n_encoder_layers={arguments.layers}",
        f"model.n_decoder_layers={arguments.layers}",
        "model.dropout=0",
        "model.expert_capacity_factor=null",
        "optimizer.lr=1e-3",
        "max_grad_norm=0.5",
        "save_best_if=null",
        f"max_duration={arguments.steps}ba",
        "eval_interval=10000ba",
        f"save_interval={arguments.steps // 2}ba",
        "log_interval=1ba",
        "loggers.progress_bar=false",
    ]


def stage_job(out: Path, stage: int, name: str, common: list[str], folder: str | None = None) -> Job:
    save_folder = out / f"stage{stage}" / (folder or name)
    mds, overrides = out / "mds", [*common, *STRATEGIES[name], f"save_folder={save_folder}"]
    if stage == 3:
        streams = (
            f"[{{local: {mds / 'preference_train'}, proportion: 0.5}},{{local: {mds / 'train'}, proportion: 0.5}}]"
        )
        overrides += [f"data.train.streams={streams}", f"loss.reference_from={out / 'stage2' / BASE / 'best'}"]
    else:
        overrides.append(f"data.train.local={mds / 'train'}")
    if stage > 1:
        overrides.append(f"init_from={out / f'stage{stage - 1}' / BASE / 'best'}")
    yaml = [str(ROOT / f"yamls/stage{stage}.yaml"), str(ROOT / "yamls/demo.yaml")]
    return {"yaml": yaml, "overrides": overrides, "load": None, "stop": None}


def launch(ranks: int, jobs: list[Job], out: Path) -> None:
    """Runs all jobs one after the other in one start of the launcher, because imports take longer than the runs."""
    (out / "jobs.json").write_text(json.dumps(jobs))
    composer = Path(sys.executable).parent / "composer"
    command = [str(argument) for argument in (composer, "-n", ranks, "-m", "tests.parity", "--jobs", out / "jobs.json")]
    limit = 120 + 60 * len(jobs)
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit)
    if result.returncode:
        raise RuntimeError(f"the runs on {ranks} ranks failed:\n{result.stdout}\n{result.stderr}")


def work(jobs: list[Job]) -> int:
    """Runs in the launched processes: trains one job after the other."""
    import gc

    import torch

    from ugt_composer.config.load import load_config
    from ugt_composer.training.build import build_trainer

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # the collections below scan only objects made by the jobs
    for job in jobs:
        trainer = build_trainer(load_config(*job["yaml"], overrides=job["overrides"]))
        if job["load"]:
            trainer.load_checkpoint(job["load"])
        if job["stop"] == 0:
            evaluation = trainer.evaluate()  # the same on every rank
            (Path(trainer.config.save_folder) / "metrics.jsonl").write_text(json.dumps({"batch": 0, **evaluation}))
        elif job["stop"]:
            trainer.fit(duration=f"{job['stop']}ba")
        else:
            trainer.train()
        trainer.close()
        del trainer
        gc.collect()
    return 0


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def training_of(folder: Path) -> list[dict[str, Any]]:
    """The logged metrics without evaluation metrics."""
    return [{k: v for k, v in line.items() if not k.startswith("metrics/eval/")} for line in metrics_of(folder)]


def largest_difference(lines: list[dict[str, Any]], others: list[dict[str, Any]]) -> float:
    """The largest relative difference over all steps and values; infinite if a step or a value is missing."""
    if [line["batch"] for line in lines] != [line["batch"] for line in others]:
        return math.inf
    worst = 0.0
    for line, other in zip(lines, others, strict=True):
        for name, value in line.items():
            if not name.endswith(DECIDED_BY_ROUNDING):
                worst = max(worst, abs(other.get(name, math.inf) - value) / max(abs(value), 1e-2))
    return worst


if __name__ == "__main__":
    sys.exit(main())
