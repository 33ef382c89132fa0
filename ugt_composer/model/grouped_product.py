"""Grouped matrix products: each row is multiplied by its group's matrix, and the sizes of the groups stay on the GPU.

R rows sorted by group, E groups, K input width, F output width. Rows after the last group belong to none. Their
products are undefined (not even finite), in the gradient of x too, and sums over rows ignore them.

PyTorch's `grouped_mm` computes them where it does not wait for the GPU, and Triton kernels on other GPUs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ugt_composer import kernels
from ugt_composer.float32_product import tf32_is_allowed

IS_AVAILABLE = torch.__version__ >= "2.11"  # a TorchVersion, which compares by number; 2.8 to 2.10 are not tested
if IS_AVAILABLE:
    from torch.nn.functional import grouped_mm  # type: ignore[attr-defined]

HOPPER = 9  # major compute capability of H100 and H200
ALIGNMENT = 16  # bytes, of addresses and strides
MOST_GROUPS = 1023  # `grouped_mm` refuses more
MOST_ELEMENTS = 2**31 - 1  # of an operand with rows; larger ones are read at wrong addresses (pytorch/torchtitan#1932)


def runs_without_waiting(x: Tensor, dtype: torch.dtype, rows: int, groups: int, *widths: int) -> bool:
    """Whether `grouped_linear` supports these sizes on x's device without copying `ends` to the CPU.

    In float32 only if TF32 is allowed: Triton's products without it do not run on tensor cores.

    Args:
        x: what the rows are taken from, on their device; of any dtype.
        dtype: of the products.
        rows, groups: R and E.
        widths: K and F of all products.
    """
    if _grouped_mm_runs_without_waiting(x.device, dtype, rows, groups, *widths):
        return True
    has_tensor_cores = dtype in (torch.bfloat16, torch.float16) or (dtype == torch.float32 and _tf32_is_allowed())
    return has_tensor_cores and groups <= kernels.MAX_GROUPS and kernels.are_usable(x)


def _grouped_mm_runs_without_waiting(
    device: torch.device, dtype: torch.dtype, rows: int, groups: int, *widths: int
) -> bool:
    """PyTorch 2.11 does so for bfloat16 from compute capability 9.0 on; otherwise it copies `ends` in each product. On
    Blackwell (10.0) it gives matrices of empty groups a gradient that is not zero (pytorch/pytorch#172439)."""
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


@torch.compiler.assume_constant_result
def _tf32_is_allowed() -> bool:
    return tf32_is_allowed()


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
    return _grouped_linear(x, weight.to(x.dtype), bias.to(x.dtype), group, ends)


# Custom ops, which a compiler leaves unchanged. In `x.t() @ gradient` the first operand has to be column-major: if it
# is row-major, an empty group crashes the process. A compiler would store the transposed tensor row-major.
@torch.library.custom_op("ugt::grouped_linear", mutates_args=())
def _grouped_linear(x: Tensor, weight: Tensor, bias: Tensor, group: Tensor, ends: Tensor) -> Tensor:
    x, weight = _aligned(x), _aligned(weight)
    if _has_kernels(x, weight):
        from ugt_composer.kernels.grouped_product import grouped_products

        return grouped_products(x, weight, bias.contiguous(), ends.contiguous())
    product = grouped_mm(x, weight, offs=ends)
    return product.add_(bias.index_select(0, group.clamp(max=len(bias) - 1)))


@_grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, group: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[2])


@torch.library.custom_op("ugt::grouped_linear_gradients", mutates_args=())
def _grouped_gradients(gradient: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gradient, x, weight = _aligned(gradient), _aligned(x), _aligned(weight)
    if _has_kernels(x, weight):
        from ugt_composer.kernels.grouped_product import grouped_gradients

        return grouped_gradients(gradient, x, weight, ends.contiguous())
    # The gradient of a gather of biases would be summed by atomics, and undefined rows would be in it. A sum is a
    # product with ones; a single column of them would not be aligned.
    ones = gradient.new_ones(len(gradient), ALIGNMENT // gradient.itemsize)
    return (
        grouped_mm(gradient, weight.transpose(1, 2), offs=ends),
        grouped_mm(x.t(), gradient, offs=ends),
        grouped_mm(ones.t(), gradient, offs=ends)[:, 0].clone(),
    )


@_grouped_gradients.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0], weight.shape[2])


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, weight, _, _, ends = inputs
    ctx.save_for_backward(x, weight, ends)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *_grouped_gradients(gradient, *ctx.saved_tensors), None, None


_grouped_linear.register_autograd(_gradients, setup_context=_save)


@register_flop_formula(torch.ops.ugt.grouped_linear)
def _operations(x_shape: torch.Size, weight_shape: torch.Size, *_: Any, **__: Any) -> int:
    """One matrix per row, for PyTorch's FlopCounterMode."""
    return 2 * x_shape.numel() * weight_shape[2]


@register_flop_formula(torch.ops.ugt.grouped_linear_gradients)
def _backward_operations(gradient: Any, x_shape: torch.Size, weight_shape: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * 2 * x_shape.numel() * weight_shape[2]


def _has_kernels(x: Tensor, weight: Tensor) -> bool:
    return kernels.are_usable(x) and not _grouped_mm_runs_without_waiting(x.device, x.dtype, x.shape[0], *weight.shape)


def _aligned(x: Tensor) -> Tensor:
    """x, row-major and at a multiple of 16 bytes: DeepSpeed's bfloat16 weights are views of one tensor and may begin
    anywhere. `grouped_mm` needs it, and a kernel is compiled once and reads 16 bytes at a time."""
    # Flattened, because a single row may have any stride and still be contiguous.
    x = x.contiguous().flatten().view(x.shape)
    return x if x.data_ptr() % ALIGNMENT == 0 else x.clone()
