"""Grouped matrix products in three Triton kernels: products of rows, gradients of matrices, gradients of biases.

R rows sorted by group, E groups, K input width, F output width. The rows of group e are those from ends[e − 1] (0 for
the first group) to ends[e]; only the GPU knows these numbers. Rows after the last group belong to none: they are not
read, and what is computed for them is undefined. Products are accumulated in float32.

The kernels are launched for the largest number of tiles that any division of the rows into groups has; each program
finds its group in `ends`, and those left over end at once. Every sum has a fixed order, over blocks of one size: the
same inputs on the same GPU give the same bits, and those of a row do not depend on other rows.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ugt_composer.float32_product import tf32_is_allowed


class Blocks(NamedTuple):
    """Sizes of a kernel's blocks: rows and columns of the result that a program owns, terms of its sums that it reads
    at once, warps, stages."""

    rows: int
    columns: int
    terms: int
    warps: int
    stages: int


@triton.jit
def _row_tile(ends, tile, E: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr):
    """The group of a tile of rows, its first row, and the group's end; (0, 0, 0) if there are fewer tiles."""
    groups = tl.arange(0, GROUPS)
    end = tl.load(ends + groups, mask=groups < E, other=0)
    begin = tl.load(ends + groups - 1, mask=(groups > 0) & (groups < E), other=0)
    tiles = (end - begin + ROWS - 1) // ROWS
    place = tile - (tl.cumsum(tiles, 0) - tiles)  # of the tile among those of each group
    is_mine = (place >= 0) & (place < tiles)
    group = tl.sum(tl.where(is_mine, groups, 0))
    first = tl.sum(tl.where(is_mine, begin + place * ROWS, 0))
    return group.to(tl.int64), first, tl.sum(tl.where(is_mine, end, 0))


@triton.jit
def _load(base, rows, columns, row_stride, column_stride, kept_rows, kept_columns):
    places = rows.to(tl.int64)[:, None] * row_stride + columns[None, :] * column_stride
    return tl.load(base + places, mask=kept_rows[:, None] & kept_columns[None, :], other=0.0)


@triton.jit
def _grouped_products(
    x,
    weight,
    bias,
    ends,
    out,
    in_stride,
    out_stride,
    E: tl.constexpr,
    GROUPS: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Consecutive programs share rows, and most of them a matrix, so that both stay in the L2 cache.
    tiles: tl.constexpr = (OUT + COLUMNS - 1) // COLUMNS
    group, first, end = _row_tile(ends, tl.program_id(0) // tiles, E, GROUPS, ROWS)
    rows = first + tl.arange(0, ROWS)
    columns = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    is_row, is_column = rows < end, columns < OUT
    if first < end:
        sums = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, IN, TERMS):
            terms = start + tl.arange(0, TERMS)
            is_term = terms < IN
            values = _load(x, rows, terms, IN, 1, is_row, is_term)
            matrix = _load(weight + group * IN * OUT, terms, columns, in_stride, out_stride, is_term, is_column)
            sums = tl.dot(values, matrix, sums, input_precision=PRECISION)
        if bias is not None:
            sums += tl.load(bias + group * OUT + columns, mask=is_column, other=0.0).to(tl.float32)[None, :]
        places = rows.to(tl.int64)[:, None] * OUT + columns[None, :]
        tl.store(out + places, sums.to(out.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


@triton.jit
def _rows_of(ends, group):
    begin = tl.load(ends + group - 1, mask=group > 0, other=0)
    return begin, tl.load(ends + group)


@triton.jit
def _weight_gradients(
    x,
    grad,
    ends,
    out,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    down: tl.constexpr = (IN + ROWS - 1) // ROWS
    across: tl.constexpr = (OUT + COLUMNS - 1) // COLUMNS
    group = tl.program_id(0) // (down * across)
    begin, end = _rows_of(ends, group)
    ins = tl.program_id(0) // across % down * ROWS + tl.arange(0, ROWS)
    outs = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    is_in, is_out = ins < IN, outs < OUT
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(begin, end, TERMS):
        terms = start + tl.arange(0, TERMS)
        values = _load(x, terms, ins, IN, 1, terms < end, is_in)
        gradients = _load(grad, terms, outs, OUT, 1, terms < end, is_out)
        sums = tl.dot(tl.trans(values), gradients, sums, input_precision=PRECISION)
    places = group.to(tl.int64) * IN * OUT + ins[:, None] * OUT + outs[None, :]
    tl.store(out + places, sums.to(out.dtype.element_ty), mask=is_in[:, None] & is_out[None, :])


@triton.jit
def _bias_gradients(grad, ends, out, OUT: tl.constexpr, COLUMNS: tl.constexpr, TERMS: tl.constexpr):
    across: tl.constexpr = (OUT + COLUMNS - 1) // COLUMNS
    group = tl.program_id(0) // across
    begin, end = _rows_of(ends, group)
    outs = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    is_out = outs < OUT
    sums = tl.zeros((TERMS, COLUMNS), tl.float32)
    for start in range(begin, end, TERMS):
        terms = start + tl.arange(0, TERMS)
        sums += _load(grad, terms, outs, OUT, 1, terms < end, is_out).to(tl.float32)
    tl.store(out + group * OUT + outs, tl.sum(sums, 0).to(out.dtype.element_ty), mask=is_out)


# Not measured. Compiled by Triton 3.3 and 3.6 for compute capabilities 8.0, 8.9 and 9.0, in half precision and TF32,
# they spill no registers and take at most 96 KiB of shared memory on 9.0 (of 227), 64 on the others, of which an L40S
# or RTX 4090 has 99. One size for any number of rows, because other sizes add in another order.
HALF = Blocks(rows=128, columns=128, terms=64, warps=8, stages=3)
FLOAT32 = Blocks(rows=64, columns=128, terms=32, warps=8, stages=3)
BIAS = Blocks(rows=1, columns=64, terms=64, warps=4, stages=2)


def grouped_products(x: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
    """x[r] @ weight[e] + bias[e] for each row r of each group e.

    Args:
        x: (R, K) bfloat16, float16 or float32, contiguous.
        weight: (E, K, F) of x's dtype, with any strides within a matrix.
        bias: (E, F) of x's dtype, contiguous; None: none.
        ends: (E,) int32, contiguous.

    Returns:
        (R, F) of x's dtype.
    """
    (count, width), (groups, _, columns) = x.shape, weight.shape
    out = x.new_empty(count, columns)
    blocks = _blocks(x)
    # A group that is not empty has at most blocks.rows − 1 rows less than its tiles have.
    tiles = (count + min(count, groups) * (blocks.rows - 1)) // blocks.rows
    if out.numel() > 0:
        with torch.cuda.device_of(x):  # Triton launches on the current device
            _grouped_products[(tiles * triton.cdiv(columns, blocks.columns),)](
                x,
                weight,
                bias,
                ends,
                out,
                weight.stride(1),
                weight.stride(2),
                E=groups,
                GROUPS=triton.next_power_of_2(groups),
                IN=width,
                OUT=columns,
                ROWS=blocks.rows,
                COLUMNS=blocks.columns,
                TERMS=blocks.terms,
                PRECISION=_precision(x),
                num_warps=blocks.warps,
                num_stages=blocks.stages,
            )
    return out


def grouped_gradients(grad: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias of `grouped_products`; exactly zero for the weights and biases of a group
    without rows.

    Args:
        grad: (R, F) of x's dtype, contiguous; not read in rows after the last group.
        x, weight, ends: as above, and weight contiguous.
    """
    (groups, width, columns), blocks = weight.shape, _blocks(x)
    grad_weight, grad_bias = weight.new_empty(weight.shape), weight.new_empty(groups, columns)
    with torch.cuda.device_of(x):
        _weight_gradients[(groups * triton.cdiv(width, blocks.rows) * triton.cdiv(columns, blocks.columns),)](
            x,
            grad,
            ends,
            grad_weight,
            IN=width,
            OUT=columns,
            ROWS=blocks.rows,
            COLUMNS=blocks.columns,
            TERMS=blocks.terms,
            PRECISION=_precision(x),
            num_warps=blocks.warps,
            num_stages=blocks.stages,
        )
        _bias_gradients[(groups * triton.cdiv(columns, BIAS.columns),)](
            grad,
            ends,
            grad_bias,
            OUT=columns,
            COLUMNS=BIAS.columns,
            TERMS=BIAS.terms,
            num_warps=BIAS.warps,
            num_stages=BIAS.stages,
        )
    return grouped_products(grad, weight.transpose(1, 2), None, ends), grad_weight, grad_bias


def _blocks(x: Tensor) -> Blocks:
    return FLOAT32 if x.dtype == torch.float32 else HALF


def _precision(x: Tensor) -> str:
    return "ieee" if x.dtype == torch.float32 and not tf32_is_allowed() else "tf32"
