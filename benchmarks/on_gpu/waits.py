"""How often the host waits for the device in a step that logs nothing."""

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
    # The last one: DeepSpeed changes PyTorch where it starts.
    "stage 1, deepspeed 2": (1, ["parallelism.strategy=deepspeed"]),
}


def measure(report: Report, variant: str, small: bool) -> None:
    report.table(
        "",
        "Counted by torch.cuda.set_sync_debug_mode over forward, loss, backward, clipping and the optimizer's step "
        f"of two microbatches of 32 rows, {STEPS} steps after two that do not count; the batch lies on the device. The "
        "control reads one number in each step.",
        ("what", "waits a step", "where"),
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
    """Waits by the line of the project that made them; of the autograd thread, which has none, by PyTorch's."""
    found: Counter[str] = Counter()

    def note(message: Any, category: Any, filename: str, line_number: int, file: Any = None, line: Any = None) -> None:
        if "called a synchronizing CUDA operation" not in str(message):
            return
        own = [frame for frame in traceback.extract_stack() if frame.filename.startswith(str(ROOT / "ugt_composer"))]
        place = (own[-1].filename, own[-1].lineno) if own else (filename, line_number)
        path = Path(place[0])
        found[f"{path.relative_to(ROOT) if own else path.name}:{place[1]}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
