"""What the card itself reaches: copies in its memory, products of large matrices, and its clocks meanwhile."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from benchmarks.on_gpu.report import Report
from benchmarks.on_gpu.steps import per_second, timed

SIZE, SMALL_SIZE = 8192, 256
BYTES, SMALL_BYTES = 4 << 30, 1 << 20  # of a copied tensor
CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "temperature.gpu")
BUSY_SECONDS = 0.7


def measure(report: Report, variant: str, small: bool) -> None:
    size, copied = (SMALL_SIZE, SMALL_BYTES) if small else (SIZE, BYTES)
    report.table(
        "",
        f"A copy of {copied / 2**30:g} GiB from the card's memory to itself, of which each byte is read and written; "
        f"products of two matrices of {size}².",
        ("what", "ms", "reached"),
    )
    report.attempt("copy", lambda: copy(copied))
    for what, dtype, tf32 in (
        ("product, bf16", torch.bfloat16, False),
        ("product, fp16", torch.float16, False),
        ("product, fp32 with TF32", torch.float32, True),
        ("product, fp32", torch.float32, False),
    ):
        report.attempt(what, lambda: product(size, dtype, tf32))  # noqa: B023
    report.table(
        "clocks",
        f"As nvidia-smi reports them: when nothing runs, and after {BUSY_SECONDS} s of bf16 products that go on.",
        ("what", *CLOCKS),
    )
    report.attempt("idle", clocks)
    report.attempt("busy", lambda: clocks_when_busy(size))


def copy(size: int) -> Sequence[object]:
    source, target = (torch.zeros(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    ms = timed(lambda: target.copy_(source), seconds=0.5).ms
    return f"{ms:.2f}", f"{per_second(2 * size, ms) / 1e9:,.0f} GB/s"


def product(size: int, dtype: torch.dtype, tf32: bool) -> Sequence[object]:
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    with tf32_allowed(tf32):
        ms = timed(lambda: a @ b, seconds=0.5).ms
    return f"{ms:.2f}", f"{per_second(2 * size**3, ms) / 1e12:,.0f} TFLOP/s"


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def clocks_when_busy(size: int) -> Sequence[str]:
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    ms = timed(lambda: a @ b, seconds=BUSY_SECONDS, most=1000).ms
    for _ in range(int(2 * 1000 * BUSY_SECONDS / ms) if ms > 0 else 1):  # queued, and not waited for
        a @ b
    seen = clocks()
    torch.cuda.synchronize()
    return seen


def clocks() -> Sequence[str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader", "--id=0"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ("nvidia-smi does not answer",)
    return [cell.strip() for cell in line.split(",")]
