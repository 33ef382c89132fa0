"""Products of states with rows of a large table, without a copy of all these rows in memory.

M products, N states, P rows of the table, D width.
"""

from typing import Any

import torch
from torch import Tensor

BLOCK_BYTES = 64 * 2**20  # of the vectors that are gathered at once, in float32


def row_products(states: Tensor, table: Tensor, owners: Tensor, rows: Tensor) -> Tensor:
    """states[owners[m]] · table[rows[m]] in float32, (M,): states (N, D), table (P, D), owners and rows int64 (M,)."""
    if torch.compiler.is_compiling():  # an exported program has no loop over a number of rows that it does not know
        return (states[owners].float() * table[rows].float()).sum(dim=-1)
    return _RowProducts.apply(states, table, owners, rows)


class _RowProducts(torch.autograd.Function):
    """The vectors are gathered block by block, and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, table: Tensor, owners: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(states, table, owners, rows)
        products = torch.empty(len(rows), dtype=torch.float32, device=states.device)
        for block in _blocks(rows, states.shape[1]):
            torch.sum(states[owners[block]].float() * table[rows[block]].float(), dim=-1, out=products[block])
        return products

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        states, table, owners, rows = ctx.saved_tensors
        of_states, of_table = (torch.zeros_like(x, dtype=torch.float32) for x in (states, table))
        for block in _blocks(rows, states.shape[1]):
            factors = gradient[block, None]
            of_states.index_add_(0, owners[block], factors * table[rows[block]].float())
            of_table.index_add_(0, rows[block], factors * states[owners[block]].float())
        return of_states.to(states.dtype), of_table.to(table.dtype), None, None


def _blocks(rows: Tensor, width: int) -> list[slice]:
    size = max(1, BLOCK_BYTES // (2 * 4 * width))
    return [slice(start, start + size) for start in range(0, len(rows), size)]
