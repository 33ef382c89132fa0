"""Training steps of the shipped stages: rows a second, utilisation, memory."""

from collections.abc import Sequence

import torch

from benchmarks.on_gpu.report import Report
from benchmarks.on_gpu.steps import (
    HISTORY,
    SMALL_HISTORY,
    TARGET,
    Stage,
    build_stage,
    estimate,
    gib,
    make_batch,
    peak_flops_per_second,
    peak_memory,
    per_second,
    runs_within_memory,
    stage_config,
    timed,
)

HEADS = (
    "what",
    "rows a microbatch × microbatches",
    "ms a step",
    "rows/s",
    "model TFLOP a step",
    "TFLOP/s",
    "utilisation",
    "peak allocated GiB",
    "peak reserved GiB",
    "dry run's estimate",
    "first step, s",
)
CHECKPOINTING = "parallelism.activation_checkpointing="


def measure(report: Report, variant: str, small: bool) -> None:
    size = 1024 if small else 8192
    peak = peak_flops_per_second(size)
    report.table(
        variant,
        f"One GPU, ddp, bf16 autocast, yamls/stage1.yaml to stage3.yaml; a step is forward, loss and backward of each "
        f"microbatch, clipping and the optimizer. Rows of {HISTORY} history and {TARGET} target tokens, in stage 3 "
        "with one rejected item; or of 1 to 511 history tokens, as many of each (mean 256), grouped by length. Where "
        "the shipped microbatch runs out of memory it is halved. Model operations: FlopCounterMode over a forward pass "
        "without empty expert slots, three times for forward and backward, once for the frozen reference; what is "
        "computed again in the backward pass does not count, padding within a microbatch does. Utilisation: of "
        f"{peak / 1e12:.0f} TFLOP/s, which a bf16 product of {size}³ reaches on this card.",
        HEADS,
    )
    compiled = variant == "compiled"
    # Of compiled stages the dearest question last: whether compiling pays at all is seen in the first row.
    cases = [(stage, even, None) for stage in (1, 2, 3) for even in (False, True) if not (compiled and even)]
    cases += [(stage, False, True) for stage in ((1,) if compiled else (1, 2, 3))]
    cases += [(1, True, None)] if compiled else []
    for stage, even, checkpointing in cases:
        config = stage_config(stage, small)
        enabled = not config.parallelism.activation_checkpointing if checkpointing else None
        shown = config.parallelism.activation_checkpointing if enabled is None else enabled
        what = (
            f"stage {stage}, {variant}, history {'1 to 511' if even else HISTORY}, "
            f"{'with' if shown else 'without'} activation checkpointing"
        )
        report.attempt(what, lambda: row(stage, shown, even, compiled, small, peak))  # noqa: B023


def row(stage: int, checkpointing: bool, even: bool, compiled: bool, small: bool, peak: float) -> Sequence[object]:
    shipped = int(stage_config(stage, small).device_train_microbatch_size)
    history = SMALL_HISTORY if small else HISTORY
    overrides = [f"{CHECKPOINTING}{str(checkpointing).lower()}"]
    eager, microbatch = built_to_fit(stage, shipped, history, even, small, overrides)
    batch = make_batch(eager.config, history, even_lengths=even)
    flops = eager.flops(batch)
    built = eager
    if compiled:
        del eager, built
        torch.cuda.empty_cache()
        built, microbatch = built_to_fit(stage, microbatch, history, even, small, [*overrides, "compile=true"])
    config = built.config
    with peak_memory() as peak_of:
        timing = timed(lambda: built.step(batch))
        memory = peak_of()
    rows = config.global_train_batch_size
    reached = per_second(flops, timing.ms)
    halved = "" if microbatch == shipped else f" (shipped: {shipped}, out of memory)"
    return (
        f"{microbatch} × {rows // microbatch}{halved}",
        f"{timing.ms:.1f}",
        f"{per_second(rows, timing.ms):,.0f}",
        f"{flops / 1e12:.1f}",
        f"{reached / 1e12:.0f}",
        f"{reached / peak:.1%}" if peak > 0 else "",
        gib(memory.allocated),
        gib(memory.reserved),
        estimate(config),
        f"{timing.first:.1f}",
    )


def built_to_fit(
    stage: int, microbatch: int, history: int, even: bool, small: bool, overrides: Sequence[str]
) -> tuple[Stage, int]:
    """A stage with the largest microbatch, of `microbatch` and its halves, with which two steps fit into memory.

    Two, since the optimizer's state is made in the first one.
    """
    while True:
        config = stage_config(stage, small, *overrides, f"device_train_microbatch_size={microbatch}")
        torch.compiler.reset()  # what was compiled for another size would be compiled anew for any size
        built = build_stage(config)
        if runs_within_memory(lambda: two_microbatches_twice(built, history, even)):  # noqa: B023
            return built, microbatch
        if microbatch == 1:
            raise torch.OutOfMemoryError("a microbatch of one row does not fit")
        del built
        microbatch //= 2


def two_microbatches_twice(stage: Stage, history: int, even: bool) -> None:
    """The first microbatches are the largest, and the second one meets the gradients of the first."""
    rows = 2 * int(stage.config.device_train_microbatch_size)
    for _ in range(2):
        stage.step(make_batch(stage.config, history, rows=rows, even_lengths=even))
