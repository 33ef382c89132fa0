"""Pointwise attention alone: the kernels against PyTorch's operations by length, and the kernels by block sizes."""

import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from triton.runtime.errors import OutOfResources

from benchmarks.on_gpu.report import Report
from benchmarks.on_gpu.steps import gib, peak_flops_per_second, peak_memory, per_second, timed
from ugt_composer.kernels import pointwise_attention as kernels
from ugt_composer.model.pointwise_product import pointwise_product

TOKENS, SMALL_TOKENS = 64 * 512, 512
WIDTH = 512  # of the model
LENGTHS, SMALL_LENGTHS = (128, 512, 2048, 4096, 8192), (16, 64)
HEADS = (16, 8, 4)  # of 32, 64 and 128 dimensions
KERNELS = list(dict.fromkeys(kernel for kernel, _ in kernels.BLOCKS))
BLOCKS = [
    kernels.Blocks(own, read, warps, stages)
    for own, read, warps in ((64, 32, 4), (64, 64, 4), (128, 64, 4), (64, 64, 8), (128, 64, 8))
    for stages in (3, 4)
]


def measure(report: Report, variant: str, small: bool) -> None:
    if variant == "blocks":
        measure_blocks(report, small)
        return
    tokens, lengths, heads = (SMALL_TOKENS, SMALL_LENGTHS, HEADS[:1]) if small else (TOKENS, LENGTHS, HEADS)
    peak = peak_flops_per_second(1024 if small else 8192)
    report.table(
        "by length",
        f"Forward and backward of φ(Q Kᵀ / √d) V / n with SiLU, {tokens:,} tokens in rows of one length, width "
        f"{WIDTH}. Pieces: PyTorch's products, a few heads at a time, which is the path without kernels. Plain: all "
        "weights at once, kept for the backward pass. TFLOP/s are of the model's operations, 12·S²·D a row, and "
        f"relative to the {peak / 1e12:.0f} that a bf16 product reaches on this card; recomputed weights do not count.",
        ("what", "ms", "TFLOP/s", "of the ceiling", "peak GiB", "kernel is … times as fast"),
    )
    cases = [(heads[0], length) for length in lengths] + [(other, lengths[-2]) for other in heads[1:]]
    for n_heads, length in cases:
        kernel_ms: list[float] = []
        for name, make in ways(tokens // length, length, n_heads).items():
            what = f"{name}, {WIDTH // n_heads} dimensions, length {length:,}"
            report.attempt(what, lambda: row(make, tokens, length, peak, kernel_ms))  # noqa: B023


def ways(
    rows: int, length: int, n_heads: int
) -> dict[str, Callable[[torch.dtype], tuple[Callable[[], Tensor], Tensor]]]:
    """Name → a function that makes (forward, differentiable input)."""

    def projected() -> Tensor:
        return torch.randn(rows * length, 3 * WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def heads(x: Tensor) -> list[Tensor]:
        return [part.view(rows, length, n_heads, -1).transpose(1, 2) for part in x.chunk(3, dim=-1)]

    def by_kernel() -> tuple[Callable[[], Tensor], Tensor]:
        x, offsets = projected(), torch.arange(0, (rows + 1) * length, length, device="cuda")
        return lambda: kernels.pointwise_attention(x, offsets, None, length, n_heads, "silu"), x

    def by_pieces() -> tuple[Callable[[], Tensor], Tensor]:
        x = projected()

        def forward() -> Tensor:
            q, k, v = heads(x)
            return pointwise_product(q / math.sqrt(q.shape[-1]), k, v / length, "silu").transpose(1, 2).flatten(2)

        return forward, x

    def plain() -> tuple[Callable[[], Tensor], Tensor]:
        x = projected()

        def forward() -> Tensor:
            q, k, v = heads(x)
            return (F.silu(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])) @ v / length).transpose(1, 2).flatten(2)

        return forward, x

    def softmax() -> tuple[Callable[[], Tensor], Tensor]:
        x = projected()
        return lambda: F.scaled_dot_product_attention(*heads(x)).transpose(1, 2).flatten(2), x

    return {"kernel": by_kernel, "pieces": by_pieces, "plain": plain, "softmax (scaled_dot_product_attention)": softmax}


def row(make: Callable[[], tuple], tokens: int, length: int, peak: float, kernel_ms: list[float]) -> Sequence[object]:
    forward, x = make()
    grad = torch.randn_like(forward())

    def run() -> None:
        x.grad = None
        forward().backward(grad)

    with peak_memory() as peak_of:
        ms = timed(run, seconds=0.3).ms
        allocated = peak_of().allocated
    kernel_ms.append(ms)
    reached = per_second(12 * tokens * length * WIDTH, ms)
    of_ceiling = f"{reached / peak:.1%}" if peak > 0 else ""
    faster = f"{ms / kernel_ms[0]:.1f}" if kernel_ms[0] > 0 else ""
    return f"{ms:.3f}", f"{reached / 1e12:.0f}", of_ceiling, gib(allocated), faster


def measure_blocks(report: Report, small: bool) -> None:
    tokens, sizes = (SMALL_TOKENS, [(16, 64)]) if small else (TOKENS, [(16, 512), (16, 4096), (8, 4096), (4, 4096)])
    report.table(
        "blocks",
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
