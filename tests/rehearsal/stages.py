"""Runs jobs of `tests.rehearsal.jobs`, one after the other, on a real or fake GPU.

    nullgpu/run.sh PYTHON PYTHON -m tests.rehearsal.stages --shop DIR --trained DIR --out DIR NAME…
    NULLGPU_COUNT=2 composer -n 2 --command_mode nullgpu/run.sh PYTHON PYTHON -m tests.rehearsal.stages …

SHOP holds data, TRAINED the folders stage1 and stage2 of runs. Writes a JSON line for each job to OUT/lines.jsonl. With
several ranks, a rank ends at the first job that fails, because others may wait for it.
"""

import argparse
import ctypes
import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist

from tests.rehearsal.host_waits import HostWaits
from tests.rehearsal.jobs import COMMANDS, JOBS, Job
from tests.rehearsal.ranks import objects_over_gloo
from tests.rehearsal.without_numbers import accept_zeros
from tests.shop import stage_arguments
from ugt_composer.cli.main import main as ugt
from ugt_composer.config.load import load_config
from ugt_composer.config.schema import Config
from ugt_composer.job.exit import exit_as_rank
from ugt_composer.training.build import build_trainer
from ugt_composer.training.trainer import UGTTrainer

LOG_EVERY, EVALUATE_EVERY, SAVE_EVERY = 5, 4, 3
STOP, END = 6, 8  # batches: of the first process, and of the one that resumes
MICROBATCH_OF_RANKS = 8  # two a batch on two ranks
TIMEOUT = 120  # seconds
HISTORY = {"user_id": "anna", "items": ["item-1", "item-2", "item-4"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("shop", "trained", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--batches", type=int, help="train so many only, without an evaluation (default: all)")
    parser.add_argument("names", nargs="+", metavar="NAME", choices=[*JOBS, *COMMANDS])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    accept_zeros()
    waits = HostWaits()
    waits.watch()
    is_alone = dist.get_world_size() == 1
    if not is_alone:
        objects_over_gloo()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        line = line_of(name, arguments, waits)
        if dist.get_global_rank() == 0:
            with (arguments.out / "lines.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")
        if line["error"] is not None and not is_alone:
            print(f"rank {dist.get_global_rank()}: {name}: {line['error']}", file=sys.stderr, flush=True)
            os._exit(1)
    return 0


def line_of(name: str, arguments: argparse.Namespace, waits: HostWaits) -> dict[str, Any]:
    """Runs a job. Its `error` is a traceback, or None; `launches` counts kernels, `sent` the bytes passed to NCCL."""
    started, launched = time.process_time(), of_driver("nullgpu_launches")
    bytes_sent()
    waits.clear()
    error = None
    try:
        if name in COMMANDS:
            run_command(name, arguments)
        else:
            run_stage(name, JOBS[name], arguments, waits)
    except (Exception, SystemExit):
        error = traceback.format_exc()
    gc.collect()
    torch.cuda.empty_cache()
    return {
        "name": name,
        "error": error,
        "cpu_seconds": round(time.process_time() - started, 1),
        "launches": of_driver("nullgpu_launches") - launched,
        "sent": bytes_sent(),
        "waits": [[*place, count] for place, count in waits.counts.items()],
    }


def of_driver(name: str, *arguments: int) -> int:
    """A counter of the preloaded driver."""
    count = ctypes.CDLL(None)[name]
    count.restype = ctypes.c_long
    return count(*arguments)


def bytes_sent() -> int:
    """Bytes sent by all collectives since the last call."""
    return sum(of_driver("nullgpu_nccl_bytes", kind) for kind in range(4))


def run_stage(name: str, job: Job, arguments: argparse.Namespace, waits: HostWaits) -> None:
    """Trains with an evaluation and two saves, evaluates again, and resumes with another save and evaluation."""
    config = stage_config(name, job, arguments)
    trainer = watched(config, waits)
    if arguments.batches is not None:
        trainer.fit(duration=f"{arguments.batches}ba")
        trainer.close()
        return
    trainer.fit(duration=f"{STOP}ba")
    trainer.evaluate()
    trainer.close()
    trainer = watched(config, waits)
    assert trainer.state.timestamp.batch.value == STOP, trainer.state.timestamp
    trainer.train()
    assert trainer.is_finished
    trainer.close()


def stage_config(name: str, job: Job, arguments: argparse.Namespace) -> Config:
    previous = arguments.trained / f"stage{job.stage - 1}" / "best"
    yaml, *small = stage_arguments(arguments.shop, arguments.out / name, job.stage, previous)
    intervals = [f"log_interval={LOG_EVERY}ba", f"eval_interval={EVALUATE_EVERY}ba", f"save_interval={SAVE_EVERY}ba"]
    ranks = dist.get_world_size()
    rows = [] if ranks == 1 else [f"device_train_microbatch_size={MICROBATCH_OF_RANKS}", f"dist_timeout={TIMEOUT}"]
    return load_config(yaml, overrides=[*small, *intervals, *rows, f"max_duration={END}ba", *job.overrides])


def watched(config: Config, waits: HostWaits) -> UGTTrainer:
    trainer = build_trainer(config)
    trainer.state.callbacks.insert(0, waits)
    return trainer


def run_command(name: str, arguments: argparse.Namespace) -> None:
    out = arguments.out / f"ugt-{name}"
    out.mkdir()
    model = str(arguments.trained / "stage2" / "best")
    preferences = str(arguments.shop / "preference")
    (out / "history.jsonl").write_text(json.dumps(HISTORY) + "\n")
    options = {
        "evaluate": ["--checkpoint", model, "--data", str(arguments.shop / "eval"), "--json", str(out / "found.json")],
        "recommend": ["--checkpoint", model, "--history", str(out / "history.jsonl"), "--json"],
        "reference": ["--checkpoint", model, "--data", preferences, "--out", str(out / "preference")],
        "export": ["--checkpoint", model, "--out", str(out / "exported")],
        "inspect": [model],
    }
    status = ugt([name, *options[name]])
    assert status == 0, status


if __name__ == "__main__":
    exit_as_rank(main)
