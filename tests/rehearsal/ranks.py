"""Lets several processes rehearse together: the driver compares their collectives and passes small messages on.

Object collectives exchange the objects' sizes by a kernel, which computes nothing here; they therefore use gloo on the
CPU. Of all other collectives the driver compares order, operation and size.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroup, distributed_c10d

OBJECT_COLLECTIVES = ("broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list")


def objects_over_gloo() -> None:
    """Replaces the functions in `torch.distributed`, through which Composer, DeepSpeed and PyTorch itself call them."""
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
