"""Timeouts and errors of all process groups, including those that libraries create.

A stalled rank is noticed by the first of these: the CPU-side all-reduce of each batch (gloo), which raises an error in
Python; the thread of `watchdog.py`, if the main thread is blocked waiting for the GPU; NCCL.
"""

import datetime
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ErrorType
from torch.distributed import distributed_c10d

NCCL_BEHIND = 30.0  # seconds by which NCCL's timeouts are longer than gloo's
HEARTBEAT_BEHIND = 120.0  # seconds later PyTorch's C++ monitor kills a process that no Python thread could end


def limit_groups(seconds: float) -> None:
    """Sets the timeout of every process group of this rank. New groups start with PyTorch's, half an hour with gloo.

    In PyTorch 2.7 a gloo group keeps the timeout that it was created with: see `HostAgreement` and `Watchdog`.
    """
    for group, backend in _own_groups():
        limit = seconds + NCCL_BEHIND * ("nccl" in backend)
        distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=limit), group)


def report_nccl_errors(longest: float) -> None:
    """Leaves NCCL's errors and timeouts to `nccl_error`. Must be called before the first process group is created.

    By default a C++ thread of PyTorch aborts the process (SIGABRT), without our exit status and message.

    Args:
        longest: the longest timeout of any group, in seconds.
    """
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(int(longest + NCCL_BEHIND + HEARTBEAT_BEHIND)))


def nccl_error() -> str | None:
    """NCCL's error of any group: "timeout", "communication error" or "remote error"; None if there is none."""
    for group, backend in _own_groups():
        if "nccl" in backend:
            error = group._get_backend(torch.device("cuda")).get_error()
            if error != ErrorType.SUCCESS:
                return error.name.lower().replace("comm_", "communication_").replace("_", " ")
    return None


def _own_groups() -> Iterator[tuple[dist.ProcessGroup, str]]:
    """The process groups that this rank is in, each with the name of its backend."""
    if dist.is_initialized():
        for group, (backend, _) in list(distributed_c10d._world.pg_map.items()):
            if distributed_c10d._rank_not_in_group(group) is False:
                yield group, backend
