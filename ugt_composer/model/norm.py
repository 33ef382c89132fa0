"""Group layer norm: shared statistics, one scale and shift per token type."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt_composer import kernels
from ugt_composer.float32_product import float32_matmul
from ugt_composer.model.autocast import product_dtype


class GroupLayerNorm(nn.Module):
    """Layer norm whose γ and β belong to the token's type (MTGR, Meituan 2025).

    The statistics are those of layer norm, over D of one token; only the affine part differs between types, so that
    user, item, action and context tokens keep their own scales in one sequence.

    Computed in float32 (float64 if x is float64). Under autocast the output is float32, like that of a layer norm on a
    GPU; otherwise it has the dtype that x and the weights promote to.

    Args:
        for_products: only matrix products use the output. Under autocast it then has their dtype: they would cast it,
            which is the same number, but takes another tensor and a pass over it.
    """

    def __init__(self, d_model: int, num_token_types: int, eps: float = 1e-5, for_products: bool = False):
        super().__init__()
        self.eps = eps
        self.for_products = for_products
        self.weight = nn.Parameter(torch.ones(num_token_types, d_model))
        self.bias = nn.Parameter(torch.zeros(num_token_types, d_model))

    def forward(self, x: Tensor, token_types: Tensor) -> Tensor:
        """x (…, D), token_types (…) int64 → (…, D)."""
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        if torch.is_autocast_enabled(x.device.type):
            dtype = product_dtype(x) if self.for_products else torch.promote_types(dtype, torch.float32)
        if kernels.are_usable(x):
            from ugt_composer.kernels.group_layer_norm import group_layer_norm, supports

            if supports(x, self.weight):
                return group_layer_norm(x, token_types, self.weight, self.bias, self.eps, dtype)
        return _GroupLayerNorm.apply(x, token_types, self.weight, self.bias, self.eps, dtype)


class _GroupLayerNorm(torch.autograd.Function):
    """Saves x, two numbers per token and the types for the backward pass. Composed of PyTorch's operations it would
    also save the normalised x and a γ per token and, if compiled, sum the gradients of γ and β by atomic additions."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, token_types: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        full = _at_least_float32(x)
        normed, mean, rstd = torch.native_layer_norm(full, x.shape[-1:], None, None, eps)
        ctx.save_for_backward(x, token_types, weight, mean, rstd)
        scale, shift = (_of_types(table.to(full.dtype), token_types) for table in (weight, bias))
        # The output has to be a new tensor. If the last operation returns an existing one (in-place, or a conversion to
        # the same dtype), PyTorch 2.11 silently compiles the function without its gradients.
        out = torch.addcmul(shift, normed, scale)
        return out if out.dtype == dtype else out.to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, token_types, weight, mean, rstd = ctx.saved_tensors
        full, gradient = _at_least_float32(x), _at_least_float32(gradient)
        grad_normed = _of_types(weight.to(full.dtype), token_types).mul_(gradient)
        grad_x, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad_normed, full, x.shape[-1:], mean, rstd, None, None, [True, False, False]
        )
        grad_scale = (full - mean).mul_(rstd).mul_(gradient)
        is_of_type = token_types.flatten() == torch.arange(weight.shape[0], device=x.device).unsqueeze(-1)
        grad_weight = _product(is_of_type, grad_scale.flatten(0, -2))
        grad_bias = _product(is_of_type, gradient.flatten(0, -2))
        return grad_x.to(x.dtype), None, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None, None


def _of_types(table: Tensor, token_types: Tensor) -> Tensor:
    """table (M, D), token_types (…) → a new tensor (…, D)."""
    if torch.compiler.is_dynamo_compiling():
        # Compiled, forward and backward pass share the look-up: of an embedding its result would be kept, an index is
        # looked up again.
        return table[token_types]
    return F.embedding(token_types, table)  # faster on a CPU


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a (M, N) bool @ b (N, D), float32 without TF32, or float64."""
    return a.to(b.dtype) @ b if b.dtype == torch.float64 else float32_matmul(a, b)
