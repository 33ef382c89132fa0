"""Products of rows with the matrix of each row's group, where the host need not know how many rows a group has.

R rows sorted by group, E groups, K input width, F output width. Rows after the last group belong to none. PyTorch
leaves their products undefined (not even finite), in the gradient of x too, and ignores them when it sums over rows.
"""

from typing import Any

import torch
from torch import Tensor

IS_AVAILABLE = torch.__version__ >= "2.11"  # a TorchVersion, which compares by number; 2.8 to 2.10 are not tested
if IS_AVAILABLE:
    from torch.nn.functional import grouped_mm  # type: ignore[attr-defined]

HOPPER = 9  # major compute capability of H100 and H200
ALIGNMENT = 16  # bytes, of addresses and strides
MOST_GROUPS = 1023
MOST_ELEMENTS = 2**31 - 1  # of an operand with rows; larger ones are read at wrong addresses (pytorch/torchtitan#1932)


def runs_without_waiting(device: torch.device, dtype: torch.dtype, rows: int, groups: int, *widths: int) -> bool:
    """Whether `grouped_linear` supports these sizes and runs on this device without copying `ends` to the CPU.

    PyTorch 2.11 does so for bfloat16 from compute capability 9.0 on; otherwise it copies them in each product. On
    Blackwell (10.0) it gives matrices of empty groups a gradient that is not zero (pytorch/pytorch#172439).
    """
    return (
        IS_AVAILABLE
        and device.type == "cuda"
        and torch.version.hip is None
        and dtype == torch.bfloat16
        and _is_hopper(device.index)
        and groups <= MOST_GROUPS
        and all(width * dtype.itemsize % ALIGNMENT == 0 for width in widths)
        and 0 < rows * max(widths) <= MOST_ELEMENTS
    )


@torch.compiler.assume_constant_result  # a compiled graph holds the answer, not the query, which would break it
def _is_hopper(index: int | None) -> bool:
    return torch.cuda.get_device_capability(index)[0] == HOPPER


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor, group: Tensor, ends: Tensor) -> Tensor:
    """x[r] @ weight[group[r]] + bias[group[r]] for each row.

    Every sum has a fixed order, in the backward pass too, so that the same inputs give the same bits.

    Args:
        x: (R, K), sorted by group.
        weight: (E, K, F), of any dtype.
        bias: (E, F), of any dtype.
        group: (R,) int64; E: in no group.
        ends: (E,) int32, the row after the last one of each group.

    Returns:
        (R, F) in x's dtype. Undefined in rows that are in no group, and so is the gradient of x.
    """
    product = grouped_mm(x, _aligned(weight.to(x.dtype)), offs=ends)
    return _AddBias.apply(product, bias.to(x.dtype), group, ends)


def _aligned(weight: Tensor) -> Tensor:
    """`weight`, or a copy of it: DeepSpeed's bfloat16 weights are views of one tensor and may begin anywhere."""
    if torch.compiler.is_compiling() or weight.data_ptr() % ALIGNMENT == 0:
        return weight
    return weight.clone()


class _AddBias(torch.autograd.Function):
    """Adds each row's bias. The gradient of a gather would be summed by atomics, and undefined rows would be in it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, group: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(ends)
        return x + bias.index_select(0, group.clamp(max=len(bias) - 1))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (ends,) = ctx.saved_tensors
        # A sum is a product with ones; a single column of them would not be aligned.
        ones = gradient.new_ones(len(gradient), ALIGNMENT // gradient.itemsize)
        return gradient, grouped_mm(ones.t(), gradient, offs=ends)[:, 0], None, None
