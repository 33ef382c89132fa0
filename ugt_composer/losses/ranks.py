"""Collectives with a gradient over the data-parallel ranks; in a single process they return their input.

DDP averages the ranks' gradients. So a loss over the rows of all ranks is exact if the mean of the ranks' losses is the
global loss, and if the backward pass of a collective sums over ranks.

Shapes: B rows of this rank, R rows of all ranks (the same number on each rank).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

_ALONE = ContextVar("alone", default=False)


@contextmanager
def without_other_ranks() -> Iterator[None]:
    """In this block every rank computes as a single process would: for ranks that evaluate different batches."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def world_size() -> int:
    return dist.get_world_size() if _has_others() else 1


def rank() -> int:
    return dist.get_rank() if _has_others() else 0


def _has_others() -> bool:
    return not _ALONE.get() and dist.is_available() and dist.is_initialized()


def gather_rows(local: Tensor) -> Tensor:
    """The rows of all ranks, rank by rank: (B, ...) -> (R, ...). Gradients flow back to the rank that owns the row."""
    return _GatherRows.apply(local) if world_size() > 1 else local


def sum_over_ranks(local: Tensor) -> Tensor:
    """The sum over ranks of tensors of one shape, with gradient."""
    return _SumOverRanks.apply(local) if world_size() > 1 else local


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:
        ctx.rows = local.shape[0]
        gathered = local.new_empty((world_size() * ctx.rows, *local.shape[1:]))
        dist.all_gather_into_tensor(gathered, local.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)  # autograd may still use `grad` itself
        dist.all_reduce(total)
        return total.narrow(0, rank() * ctx.rows, ctx.rows)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:
        total = local.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
