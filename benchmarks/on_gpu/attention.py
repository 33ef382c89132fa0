"""Pointwise attention alone, by length and over uneven rows: the kernels against PyTorch's operations."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.on_gpu.report import Report
from benchmarks.on_gpu.steps import gib, peak_flops_per_second, peak_memory, per_second, timed
from ugt_composer.kernels import pointwise_attention as kernels
from ugt_composer.model.pointwise_product import pointwise_product

TOKENS, SMALL_TOKENS = 64 * 512, 512
WIDTH = 512  # of the model
LENGTHS, SMALL_LENGTHS = (128, 512, 2048, 4096, 8192), (16, 64)
HEADS = (16, 8, 4)  # of 32, 64 and 128 dimensions
MEAN_LENGTH, SPREAD = 256, 0.6  # of the lognormal lengths of uneven rows, before they are cut; of their logarithm
COLUMNS = ("what", "ms", "TFLOP/s", "of the ceiling", "peak GiB", "kernel is … times as fast")

Ways = dict[str, Callable[[], tuple[Callable[[], Tensor], Tensor]]]  # name → makes (forward, differentiable input)


class Rows(NamedTuple):
    """Rows of attention.

    Attributes:
        lengths: (B,) int64, on the device.
        longest: of them.
        n_heads: of each row.
        squares: the sum of the squared lengths.
    """

    lengths: Tensor
    longest: int
    n_heads: int
    squares: int

    @classmethod
    def of(cls, lengths: Sequence[int], n_heads: int) -> "Rows":
        squares = sum(length * length for length in lengths)
        return cls(torch.tensor(lengths, device="cuda"), max(lengths), n_heads, squares)

    def offsets(self) -> Tensor:
        ends = self.lengths.cumsum(0)
        return torch.cat((ends.new_zeros(1), ends))

    def mask(self) -> Tensor:
        """(B, S) bool."""
        return torch.arange(self.longest, device="cuda") < self.lengths[:, None]

    def padded_offsets(self) -> Tensor:
        return torch.arange(0, (len(self.lengths) + 1) * self.longest, self.longest, device="cuda")


def measure(report: Report, variant: str, small: bool) -> None:
    tokens, lengths, heads = (SMALL_TOKENS, SMALL_LENGTHS, HEADS[:1]) if small else (TOKENS, LENGTHS, HEADS)
    peak = peak_flops_per_second(1024 if small else 8192)
    uneven_rows(report, 64 if small else 512, 4 if small else 128, peak)
    report.table(
        "by length",
        f"Forward and backward of φ(Q Kᵀ / √d) V / n with SiLU, {tokens:,} tokens in rows of one length, width "
        f"{WIDTH}. Pieces: PyTorch's products, a few heads at a time, which is the path without kernels. Plain: all "
        "weights at once, kept for the backward pass; also under torch.compile. TFLOP/s are of the model's operations, "
        f"12·S²·D a row, and relative to the {peak / 1e12:.0f} that a bf16 product reaches on this card; recomputed "
        "weights do not count.",
        COLUMNS,
    )
    cases = [(heads[0], length) for length in lengths] + [(other, lengths[-2]) for other in heads[1:]]
    for n_heads, length in cases:
        rows = Rows.of([length] * (tokens // length), n_heads)
        chosen = even_ways(rows)
        if n_heads != heads[0]:
            del chosen["plain"], chosen["plain, compiled"]
        attempt_all(report, chosen, f"{WIDTH // n_heads} dimensions, length {length:,}", rows, peak)


def uneven_rows(report: Report, longest: int, count: int, peak: float) -> None:
    lengths = lognormal_lengths(count, longest)
    report.table(
        "uneven rows",
        f"The same over {count} rows of different lengths, lognormal and at most {longest} (mean "
        f"{sum(lengths) / count:.0f}): packed one after the other, or padded to the longest with a mask. TFLOP/s are "
        "of the valid tokens' operations, 12·D·Σ S² over the rows.",
        COLUMNS,
    )
    rows = Rows.of(lengths, HEADS[0])
    attempt_all(report, uneven_ways(rows), f"{WIDTH // HEADS[0]} dimensions", rows, peak)


def lognormal_lengths(count: int, longest: int) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(count, generator=generator)
    mean = math.log(min(MEAN_LENGTH, longest / 2)) - SPREAD**2 / 2
    return (mean + SPREAD * normal).exp().round().clamp(1, longest).long().tolist()


def attempt_all(report: Report, ways: Ways, what: str, rows: Rows, peak: float) -> None:
    times: dict[str, float] = {}
    for name in ways:
        torch.compiler.reset()
        report.attempt(f"{name}, {what}", lambda: row(ways, name, rows, peak, times))  # noqa: B023


def even_ways(rows: Rows) -> Ways:
    """The ways to compute rows of one length; the first is the kernel."""
    count, length, n_heads = len(rows.lengths), rows.longest, rows.n_heads

    def of(forward: Callable[[Tensor], Tensor]) -> tuple[Callable[[], Tensor], Tensor]:
        x = projected(count * length)
        return lambda: forward(x), x

    def heads(x: Tensor) -> list[Tensor]:
        return [part.view(count, length, n_heads, -1).transpose(1, 2) for part in x.chunk(3, dim=-1)]

    def by_kernel() -> tuple[Callable[[], Tensor], Tensor]:
        offsets = rows.offsets()
        return of(lambda x: kernels.pointwise_attention(x, offsets, None, length, n_heads, "silu"))

    def pieces(x: Tensor) -> Tensor:
        q, k, v = heads(x)
        return merged(pointwise_product(q / math.sqrt(q.shape[-1]), k, v / length, "silu"))

    def plain(x: Tensor) -> Tensor:
        q, k, v = heads(x)
        return merged(F.silu(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])) @ v / length)

    def softmax(x: Tensor) -> Tensor:
        return merged(F.scaled_dot_product_attention(*heads(x)))

    return {
        "kernel": by_kernel,
        "pieces": lambda: of(pieces),
        "plain": lambda: of(plain),
        "plain, compiled": lambda: of(torch.compile(plain, dynamic=False)),
        "softmax (scaled_dot_product_attention)": lambda: of(softmax),
    }


def uneven_ways(rows: Rows) -> Ways:
    """The ways to compute rows of different lengths; the first is the kernel without padding."""
    count, longest, n_heads = len(rows.lengths), rows.longest, rows.n_heads
    mask = rows.mask()

    def padded_heads(x: Tensor) -> list[Tensor]:
        return [part.view(count, longest, n_heads, -1).transpose(1, 2) for part in x.chunk(3, dim=-1)]

    def packed() -> tuple[Callable[[], Tensor], Tensor]:
        x, offsets = projected(int(rows.lengths.sum())), rows.offsets()
        return lambda: kernels.pointwise_attention(x, offsets, None, longest, n_heads, "silu"), x

    def padded() -> tuple[Callable[[], Tensor], Tensor]:
        x, offsets, valid = projected(count * longest), rows.padded_offsets(), mask.flatten()
        return lambda: kernels.pointwise_attention(x, offsets, valid, longest, n_heads, "silu"), x

    def pieces() -> tuple[Callable[[], Tensor], Tensor]:
        x, factors = projected(count * longest), (mask / rows.lengths[:, None]).bfloat16()[:, None, :, None]

        def forward() -> Tensor:
            q, k, v = padded_heads(x)
            return merged(pointwise_product(q / math.sqrt(q.shape[-1]), k, v * factors, "silu"))

        return forward, x

    def softmax() -> tuple[Callable[[], Tensor], Tensor]:
        x, keys = projected(count * longest), mask[:, None, None, :]
        return lambda: merged(F.scaled_dot_product_attention(*padded_heads(x), attn_mask=keys)), x

    return {
        "kernel, packed": packed,
        "kernel, padded": padded,
        "pieces, padded": pieces,
        "softmax (scaled_dot_product_attention), padded": softmax,
    }


def projected(tokens: int) -> Tensor:
    return torch.randn(tokens, 3 * WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)


def merged(x: Tensor) -> Tensor:
    """(B, H, S, d) → (B, S, D)."""
    return x.transpose(1, 2).flatten(2)


def row(ways: Ways, name: str, rows: Rows, peak: float, times: dict[str, float]) -> Sequence[object]:
    """times: of the ways so far, in ms; the first way is the kernel."""
    forward, x = ways[name]()
    grad = torch.randn_like(forward())

    def run() -> None:
        x.grad = None
        forward().backward(grad)

    with peak_memory() as peak_of:
        ms = times[name] = timed(run, seconds=0.3).ms
        allocated = peak_of().allocated
    reached, kernel_ms = per_second(12 * rows.squares * WIDTH, ms), times.get(next(iter(ways)), 0.0)
    of_ceiling = f"{reached / peak:.1%}" if peak > 0 else ""
    faster = f"{ms / kernel_ms:.1f}" if kernel_ms > 0 else ""
    return f"{ms:.3f}", f"{reached / 1e12:.0f}", of_ceiling, gib(allocated), faster
