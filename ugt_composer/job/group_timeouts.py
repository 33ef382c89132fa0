"""Timeouts and errors of all process groups, those that libraries make for themselves too.

A stalled rank is noticed in this order: by an all-reduce over the hosts (gloo, one a batch), which raises in Python; by
`watchdog.py`, where the main thread waits for the GPU and nothing can be raised; by NCCL.
"""

import datetime
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ErrorType
from torch.distributed import distributed_c10d

NCCL_BEHIND = 30.0  # seconds that NCCL's timeouts are longer than those of the hosts
HEARTBEAT_BEHIND = 120.0  # seconds after which PyTorch's C++ monitor ends a process that no thread of Python can end


def limit_groups(seconds: float) -> None:
    """Gives every process group that this rank is in the timeout; a new one has PyTorch's, half an hour with gloo.

    In PyTorch 2.7 a gloo group keeps the one that it was made with: see `HostAgreement` and `Watchdog`.
    """
    for group, backend in _own_groups():
        limit = seconds + NCCL_BEHIND * ("nccl" in backend)
        distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=limit), group)


def report_nccl_errors(longest: float) -> None:
    """NCCL's errors and timeouts are to be read by `nccl_error`: by default PyTorch aborts the process (SIGABRT) in a
    thread of C++, without an exit status or a sentence of ours. To be called before the first process group is made.

    Args:
        longest: timeout of any group, in seconds.
    """
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(int(longest + NCCL_BEHIND + HEARTBEAT_BEHIND)))


def nccl_error() -> str | None:
    """What NCCL reports of any group: "timeout", "communication error" or "remote error"; None while all is well."""
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
