"""Training steps of the shipped stages: rows per second, utilisation, memory."""

import time
from collections.abc import Sequence

import torch

from benchmarks.on_gpu.report import Report
from benchmarks.on_gpu.steps import (
    HISTORY,
    MICROBATCHES,
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
    "valid tokens/s",
    "model TFLOP per step",
    "TFLOP/s",
    "utilisation",
    "peak allocated GiB",
    "peak reserved GiB",
    "dry run's estimate",
    "first two steps, s",
)
CHECKPOINTING = "parallelism.activation_checkpointing="


def measure(report: Report, variant: str, small: bool) -> None:
    """variant: eager; compiled; or without kernels, for a process with UGT_KERNELS=0."""
    peak = peak_flops_per_second(1024 if small else 8192)
    report.table(
        variant,
        f"One GPU, ddp, bf16 autocast, yamls/stage1.yaml to stage3.yaml; a step is forward, loss and backward of "
        f"{MICROBATCHES} shipped microbatches (a shipped batch has 4), clipping and the optimizer. Rows of {HISTORY} "
        f"history and {TARGET} target tokens, in stage 3 with one rejected item; or of 1 to 511 history tokens, evenly "
        "distributed (mean 256), grouped by length. If the shipped microbatch does not fit into memory, it is halved. "
        "Model operations: FlopCounterMode over a forward pass without empty expert slots, times three for forward and "
        "backward, once for the frozen reference. Attention over rows of different lengths counts exactly, the sum of "
        "the squared lengths; padding and recomputation in the backward pass do not count. Utilisation is relative to "
        f"the {peak / 1e12:.0f} TFLOP/s that a bf16 product of 8192³ reaches on this card.",
        HEADS,
    )
    uneven = (False, True) if variant == "eager" else (False,)
    cases = [(stage, even, False) for stage in (1, 2, 3) for even in uneven]
    cases += [(1, False, True)] if variant != "without kernels" else []
    for stage, even, flipped in cases:
        shipped = stage_config(stage, small).parallelism.activation_checkpointing
        checkpointing = shipped != flipped
        what = (
            f"stage {stage}, {variant}, history {'1 to 511' if even else HISTORY}, "
            f"{'with' if checkpointing else 'without'} activation checkpointing"
        )
        report.attempt(what, lambda: row(stage, checkpointing, even, variant == "compiled", small, peak))  # noqa: B023


def row(stage: int, checkpointing: bool, even: bool, compiled: bool, small: bool, peak: float) -> Sequence[object]:
    shipped = int(stage_config(stage, small).device_train_microbatch_size)
    history = SMALL_HISTORY if small else HISTORY
    overrides = [f"{CHECKPOINTING}{str(checkpointing).lower()}", f"compile={str(compiled).lower()}"]
    built, microbatch, first = built_to_fit(stage, shipped, history, even, small, overrides)
    batch = make_batch(built.config, history, even_lengths=even)
    flops = built.flops(batch)
    with peak_memory() as peak_of:
        timing = timed(lambda: built.step(batch), seconds=2.0, warm_ups=1)
        memory = peak_of()
    rows = built.config.global_train_batch_size
    tokens = sum(batch["encoder_lengths"]) + sum(batch["decoder_lengths"])
    reached = per_second(flops, timing.ms)
    halved = "" if microbatch == shipped else f" (shipped: {shipped}, out of memory)"
    return (
        f"{microbatch} × {rows // microbatch}{halved}",
        f"{timing.ms:.1f}",
        f"{per_second(rows, timing.ms):,.0f}",
        f"{per_second(tokens, timing.ms):,.0f}",
        f"{flops / 1e12:.1f}",
        f"{reached / 1e12:.0f}",
        f"{reached / peak:.1%}" if peak > 0 else "",
        gib(memory.allocated),
        gib(memory.reserved),
        estimate(built.config),
        f"{first:.1f}",
    )


def built_to_fit(
    stage: int, microbatch: int, history: int, even: bool, small: bool, overrides: Sequence[str]
) -> tuple[Stage, int, float]:
    """Halves `microbatch` until two steps fit into memory, because the optimizer's state is created in the first one.

    Returns: the stage, its microbatch size and the seconds of the first two steps, with compilation.
    """
    while True:
        config = stage_config(
            stage,
            small,
            *overrides,
            f"device_train_microbatch_size={microbatch}",
            f"global_train_batch_size={MICROBATCHES * microbatch}",
        )
        torch.compiler.reset()  # otherwise dynamo would recompile for dynamic sizes after another microbatch size
        built = build_stage(config)
        started = time.perf_counter()
        if runs_within_memory(lambda: two_steps(built, history, even)):  # noqa: B023
            return built, microbatch, time.perf_counter() - started
        if microbatch == 1:
            raise torch.OutOfMemoryError("a microbatch of one row does not fit")
        del built
        microbatch //= 2


def two_steps(stage: Stage, history: int, even: bool) -> None:
    batch = make_batch(stage.config, history, even_lengths=even)
    for _ in range(2):
        stage.step(batch)
