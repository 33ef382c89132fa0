"""Timeouts and errors of all process groups, including those that libraries create.

A stalled rank is noticed by the first of these: the CPU-side all-reduce of each batch (gloo), which raises an error in
Python; the thread of `watchdog.py`, if the main thread is blocked waiting for the GPU; NCCL.
"""

import os

from ugt_composer import torch_patches
from ugt_composer.torch_patches import own_groups, set_timeout

NCCL_MARGIN = 30.0  # seconds by which NCCL's timeouts are longer than gloo's
HEARTBEAT_MARGIN = 120.0  # seconds later PyTorch's C++ monitor kills a process that no Python thread could end


def limit_groups(seconds: float) -> None:
    """Sets the timeout of every process group of this rank. New groups start with PyTorch's, half an hour with gloo.

    In PyTorch 2.7 a gloo group keeps the timeout that it was created with: see `CpuAllReduce` and `Watchdog`.
    """
    for group, backend in own_groups():
        set_timeout(group, seconds + NCCL_MARGIN * ("nccl" in backend))


def report_nccl_errors(longest: float) -> None:
    """Leaves NCCL's errors and timeouts to `nccl_error`. Must be called before the first process group is created.

    By default a C++ thread of PyTorch aborts the process (SIGABRT), without our exit status and message.

    Args:
        longest: the longest timeout of any group, in seconds.
    """
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(int(longest + NCCL_MARGIN + HEARTBEAT_MARGIN)))


def nccl_error() -> str | None:
    """NCCL's error of any group: "timeout", "communication error" or "remote error"; None if there is none."""
    errors = (torch_patches.nccl_error(group) for group, backend in own_groups() if "nccl" in backend)
    return next(filter(None, errors), None)
