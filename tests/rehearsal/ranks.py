"""Lets several processes rehearse together: the driver matches their collectives, and passes small messages on.

An object collective puts the objects' sizes together by a kernel, so without numbers none arrives. Those go over gloo,
through the hosts; the order, operation and size of all others are compared.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroup, distributed_c10d

OBJECT_COLLECTIVES = ("broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list")


def objects_over_gloo() -> None:
    """For all who call them as functions of `torch.distributed`: Composer, DeepSpeed and PyTorch itself do."""
    twins: dict[ProcessGroup, ProcessGroup] = {}

    def twin(group: ProcessGroup | None) -> ProcessGroup:
        group = group or dist.group.WORLD
        if dist.get_backend(group) == "gloo":
            return group
        if group not in twins:
            ranks = dist.get_process_group_ranks(group)
            twins[group] = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
        return twins[group]

    for name in OBJECT_COLLECTIVES:
        routed = _routed(getattr(dist, name), twin)
        for module in (dist, distributed_c10d):
            setattr(module, name, routed)


def _routed(collective: Callable, twin: Callable[[ProcessGroup | None], ProcessGroup]) -> Callable:
    signature = inspect.signature(collective)

    @functools.wraps(collective)
    def routed(*args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        bound.arguments["group"] = twin(bound.arguments.get("group"))
        bound.arguments.pop("device", None)  # the group's own
        collective(*bound.args, **bound.kwargs)

    return routed
