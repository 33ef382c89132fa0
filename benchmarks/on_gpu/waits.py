"""How often the CPU waits for the GPU in a step without logging."""

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.on_gpu.report import Report
from benchmarks.on_gpu.steps import HISTORY, ROOT, SMALL_HISTORY, build_stage, make_batch, stage_config

STEPS = 3
CONTROL = "control"
CASES = {
    "stage 1, ddp": (1, []),
    "stage 2, ddp": (2, []),
    "stage 3, ddp": (3, []),
    "stage 2, ddp, softmax and negatives over the catalogue": (
        2,
        ["model.level_softmax=catalogue", "loss.contrastive_negatives=catalogue"],
    ),
    "stage 1, ddp, activation checkpointing": (1, ["parallelism.activation_checkpointing=true"]),
    "stage 1, fsdp": (1, ["parallelism.strategy=fsdp"]),
    CONTROL: (1, []),
    # Last, because DeepSpeed patches PyTorch when it starts.
    "stage 1, deepspeed 2": (1, ["parallelism.strategy=deepspeed"]),
}


def measure(report: Report, variant: str, small: bool) -> None:
    report.table(
        "",
        "Counted by torch.cuda.set_sync_debug_mode over forward, loss, backward, clipping and the optimizer's step "
        f"of two microbatches of 32 rows, over {STEPS} steps after two warm-up steps; the batch is on the device. The "
        "control reads one number from the device in each step.",
        ("what", "waits per step", "where"),
    )
    for what, (stage, overrides) in CASES.items():
        report.attempt(what, lambda: row(stage, overrides, small, what == CONTROL))  # noqa: B023


def row(stage: int, overrides: Sequence[str], small: bool, reads: bool) -> Sequence[object]:
    sizes = ["device_train_microbatch_size=32", "global_train_batch_size=64"]
    config = stage_config(stage, small, *sizes, *overrides)
    built = build_stage(config)
    batch = make_batch(config, SMALL_HISTORY if small else HISTORY)
    for _ in range(2):
        built.step(batch)
    torch.cuda.synchronize()
    with counted_waits() as waits:
        for _ in range(STEPS):
            built.step(batch)
            if reads:
                next(built.model.parameters()).sum().item()
    places = [f"{place} ({count / STEPS:g} ×)" for place, count in waits.most_common(5)]
    return f"{sum(waits.values()) / STEPS:g}", "; ".join(places)


@contextmanager
def counted_waits() -> Iterator[Counter[str]]:
    """Counts waits by the line of the project that caused them, or in the autograd thread by PyTorch's line."""
    waits: Counter[str] = Counter()

    def note(message: Any, category: Any, filename: str, line_number: int, file: Any = None, line: Any = None) -> None:
        if "called a synchronizing CUDA operation" not in str(message):
            return
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(str(ROOT / "ugt_composer"))]
        place = (frames[-1].filename, frames[-1].lineno) if frames else (filename, line_number)
        path = Path(place[0])
        waits[f"{path.relative_to(ROOT) if frames else path.name}:{place[1]}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
