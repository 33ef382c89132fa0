"""Moving rows of a matrix, with gathers in the forward and in the backward pass.

PyTorch would sum the gradient of a gather with atomic additions, in an order that differs from run to run. Here every
row is taken at most once and the inverse gather is known, so that the same inputs give the same bits.
"""

from typing import Any

import torch
from torch import Tensor

from ugt_composer.model.autocast import product_dtype

Rows = tuple[Tensor, Tensor | None]  # row indices (R,) int64, and which of them are valid (R,) bool; None: all


def take_rows(x: Tensor, index: Rows, inverse: Rows, repeats: int = 1, dtype: torch.dtype | None = None) -> Tensor:
    """Repeats each row of x (M, D) `repeats` times and selects rows: (M·repeats, D) → (R, D), zero where `index` is not
    valid.

    Args:
        inverse: the place in the result of each of the M·repeats rows; the gradient is a gather as well. If a row is
            selected more than once, the gradient is that of this place alone.
        dtype: of the result; None: that of matrix products.
    """
    return _TakeRows.apply(x, repeats, dtype or product_dtype(x), *index, *inverse)


class _TakeRows(torch.autograd.Function):
    """See `take_rows`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        repeats: int,
        dtype: torch.dtype,
        index: Tensor,
        index_valid: Tensor | None,
        inverse: Tensor,
        inverse_valid: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(inverse, inverse_valid)
        ctx.repeats, ctx.dtype = repeats, x.dtype
        return _gather(x.to(dtype), index // repeats if repeats > 1 else index, index_valid)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inverse, inverse_valid = ctx.saved_tensors
        rows = _gather(gradient, inverse, inverse_valid)
        if ctx.repeats > 1:
            rows = rows.unflatten(0, (-1, ctx.repeats)).sum(1, dtype=ctx.dtype)
        return rows.to(ctx.dtype), None, None, None, None, None, None


def _gather(x: Tensor, index: Tensor, valid: Tensor | None) -> Tensor:
    rows = x.index_select(0, index)
    # Not in place: a compiled function's output has to be a new tensor, see GroupLayerNorm.
    return rows if valid is None else rows.masked_fill(~valid.unsqueeze(-1), 0)


def inverse_permutation(order: Tensor) -> Tensor:
    """The inverse of a permutation (N,) int64. Every place is written once, so the scatter is deterministic."""
    return order.scatter(0, order, torch.arange(order.shape[0], device=order.device))
