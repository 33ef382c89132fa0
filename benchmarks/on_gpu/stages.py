"""Training steps of the shipped stages: rows per second, utilisation, memory."""

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
    "rows per microbatch × microbatches",
    "ms per step",
    "rows/s",
    "model TFLOP per step",
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
        "with one rejected item; or of 1 to 511 history tokens, evenly distributed (mean 256), grouped by length. If "
        "the shipped microbatch does not fit into memory, it is halved. Model operations: FlopCounterMode over a "
        "forward pass without empty expert slots, times three for forward and backward, once for the frozen reference; "
        "recomputation in the backward pass does not count, padding within a microbatch does. Utilisation is relative "
        f"to the {peak / 1e12:.0f} TFLOP/s that a bf16 product of {size}³ reaches on this card.",
        HEADS,
    )
    compiled = variant == "compiled"
    # With compiled stages, the slowest case is last: the first row already shows whether compiling pays off.
    cases = [(stage, even, None) for stage in (1, 2, 3) for even in (False, True) if not (compiled and even)]
    cases += [(stage, False, True) for stage in ((1,) if compiled else (1, 2, 3))]
    cases += [(1, True, None)] if compiled else []
    for stage, even, checkpointing in cases:
        config = stage_config(stage, small)
        enabled = not config.parallelism.activation_checkpointing if checkpointing else None
        checkpointed = config.parallelism.activation_checkpointing if enabled is None else enabled
        what = (
            f"stage {stage}, {variant}, history {'1 to 511' if even else HISTORY}, "
            f"{'with' if checkpointed else 'without'} activation checkpointing"
        )
        report.attempt(what, lambda: row(stage, checkpointed, even, compiled, small, peak))  # noqa: B023


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
    """Halves `microbatch` until two steps fit into memory. Returns the stage and its microbatch size.

    Two steps, because the optimizer's state is created in the first one.
    """
    while True:
        config = stage_config(stage, small, *overrides, f"device_train_microbatch_size={microbatch}")
        torch.compiler.reset()  # otherwise dynamo would recompile for dynamic sizes after another microbatch size
        built = build_stage(config)
        if runs_within_memory(lambda: two_microbatches_twice(built, history, even)):  # noqa: B023
            return built, microbatch
        if microbatch == 1:
            raise torch.OutOfMemoryError("a microbatch of one row does not fit")
        del built
        microbatch //= 2


def two_microbatches_twice(stage: Stage, history: int, even: bool) -> None:
    """Two steps of two microbatches. The first ones are the largest; the second adds to gradients of the first."""
    rows = 2 * int(stage.config.device_train_microbatch_size)
    for _ in range(2):
        stage.step(make_batch(stage.config, history, rows=rows, even_lengths=even))
