"""The kernels of pointwise attention by the sizes of their blocks, to choose those that the package has."""

import itertools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from triton.runtime.errors import OutOfResources

from benchmarks.on_gpu.attention import SMALL_TOKENS, TOKENS, WIDTH
from benchmarks.on_gpu.report import Report
from benchmarks.on_gpu.steps import timed
from ugt_composer.kernels import pointwise_attention as kernels

KERNELS = list(dict.fromkeys(kernel for kernel, _ in kernels.BLOCKS))
BLOCKS = [
    kernels.Blocks(own, read, warps, stages)
    for own, read, warps in ((64, 32, 4), (64, 64, 4), (128, 64, 4), (64, 64, 8), (128, 64, 8))
    for stages in (3, 4)
]


def measure(report: Report, variant: str, small: bool) -> None:
    tokens, sizes = (SMALL_TOKENS, [(16, 64)]) if small else (TOKENS, [(16, 512), (16, 4096), (8, 4096), (4, 4096)])
    report.table(
        "",
        f"ms of each kernel in bf16 by the sizes of its blocks: tokens owned × tokens read at once, warps, stages. "
        f"{tokens:,} tokens; * marks the shipped sizes.",
        ("what", *(f"{WIDTH // n_heads} dimensions, length {length:,}" for n_heads, length in sizes)),
    )
    cases = list(itertools.product(range(len(KERNELS)), BLOCKS[:2] if small else BLOCKS))
    with ProcessPoolExecutor(1 if small else 14, mp_context=get_context("spawn")) as pool:
        jobs = [(*case, n_heads) for case in cases for n_heads in sorted({n_heads for n_heads, _ in sizes})]
        list(pool.map(compile_one, jobs))  # into Triton's cache
    for index, blocks in cases:
        what = f"{KERNELS[index].__name__.strip('_')}, {blocks.own} × {blocks.read}, {blocks.warps}, {blocks.stages}"
        report.attempt(what, lambda: [cell(index, blocks, n, tokens // length, length) for n, length in sizes])  # noqa: B023


def compile_one(job: tuple[int, kernels.Blocks, int]) -> None:
    cell(*job, 1, 16)


def cell(index: int, blocks: kernels.Blocks, n_heads: int, rows: int, length: int) -> str:
    """The median time of a kernel in ms; the error's name if these blocks do not fit."""
    key = KERNELS[index], WIDTH // n_heads
    shipped, kernels.BLOCKS[key] = kernels.BLOCKS[key], blocks
    qkv, grad = (torch.randn(rows * length, n * WIDTH, device="cuda", dtype=torch.bfloat16) for n in (3, 1))
    offsets = torch.arange(0, (rows + 1) * length, length, device="cuda")
    inputs: tuple[Any, ...] = (qkv,) if index == 0 else (grad, qkv)
    out = torch.empty_like(grad if index == 0 else qkv)

    def run() -> None:
        kernels._launch(KERNELS[index], inputs, out, offsets, None, None, length, n_heads, "silu", 0.0)

    try:
        return f"{timed(run, seconds=0.05).ms:.3f}{' *' * (blocks == shipped)}"
    except OutOfResources:
        return "does not fit"
    finally:
        kernels.BLOCKS[key] = shipped
