"""A step on one GPU under each strategy with the same microbatch: the overhead of the strategies."""

from collections.abc import Sequence

from benchmarks.on_gpu.report import Report
from benchmarks.on_gpu.steps import (
    HISTORY,
    SMALL_HISTORY,
    TARGET,
    build_stage,
    estimate,
    gib,
    make_batch,
    peak_memory,
    per_second,
    stage_config,
    timed,
)

MICROBATCH, MICROBATCHES = 64, 2
HEADS = (
    "what",
    "ms per step",
    "rows/s",
    "peak allocated GiB",
    "peak reserved GiB",
    "dry run's estimate",
    "first step, s",
)


def measure(report: Report, variant: str, small: bool) -> None:
    """variant: ddp, fsdp, or deepspeed and its stage. Each has its own process, because DeepSpeed patches PyTorch."""
    report.table(
        "",
        f"Stage 1 in bf16, {MICROBATCHES} microbatches of {MICROBATCH} rows of {HISTORY} history and {TARGET} target "
        "tokens, on one GPU, no activation checkpointing. With one rank nothing is sharded: the rows differ in what "
        "a strategy computes and stores. DeepSpeed casts the weights to bf16 and keeps float32 master weights.",
        HEADS,
    )
    report.attempt(variant, lambda: row(variant, small))


def row(variant: str, small: bool) -> Sequence[object]:
    name, *zero_stage = variant.split()
    microbatch = 4 if small else MICROBATCH
    config = stage_config(
        1,
        small,
        f"parallelism.strategy={name}",
        *(f"parallelism.deepspeed.zero_stage={number}" for number in zero_stage),
        "parallelism.activation_checkpointing=false",
        f"device_train_microbatch_size={microbatch}",
        f"global_train_batch_size={microbatch * MICROBATCHES}",
    )
    stage = build_stage(config)
    batch = make_batch(config, SMALL_HISTORY if small else HISTORY)
    with peak_memory() as peak:
        timing = timed(lambda: stage.step(batch))
        memory = peak()
    rate = per_second(config.global_train_batch_size, timing.ms)
    return (
        f"{timing.ms:.1f}",
        f"{rate:,.0f}",
        gib(memory.allocated),
        gib(memory.reserved),
        estimate(config),
        f"{timing.first:.1f}",
    )
