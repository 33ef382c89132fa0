"""HSTU's relative time bias (Zhai et al., 2024): φ(Q Kᵀ + bias[bucket of |t_i − t_j|]) V.

B rows, H heads, S tokens, d width of a head, K buckets of time and one of unknown times.

As in `pointwise_product`, weights are computed a piece at a time, and recomputed in the backward pass; so are buckets:
no (S, S) tensor of all rows exists. Sums are matrix products, whose order is fixed: no atomic additions.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ugt_composer.float32_product import float32_matmul
from ugt_composer.kernels import is_exporting
from ugt_composer.model.autocast import product_dtype
from ugt_composer.model.pointwise_product import ACTIVATIONS, PIECE_BYTES, multiply_by_slopes
from ugt_composer.model.time_buckets import difference, time_bucket


def relative_buckets(times: Tensor, buckets: int) -> Tensor:
    """The buckets of |t_i − t_j|: times (B, S) → int64 (B, S, S), 0 where one of the two is unknown."""
    i, j = times[:, :, None], times[:, None, :]
    return time_bucket(difference(torch.maximum(i, j), torch.minimum(i, j)), buckets)


def biased_pointwise_product(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, times: Tensor, activation: str) -> Tensor:
    """q, k, v (B, H, S, d) → φ(q kᵀ + bias) v, (B, H, S, d); φ is silu or relu. Under autocast the result has
    autocast's dtype.

    Args:
        bias: (H, 1 + K), by bucket.
        times: int64 (B, S) seconds, negative where unknown.
    """
    if is_exporting():
        return ACTIVATIONS[activation](q @ k.transpose(-1, -2) + _biases(bias, times)) @ v
    q, k, v = (x.to(product_dtype(x)) for x in (q, k, v))
    return _product(q, k, v, bias, times, activation)


def time_bias(bias: Tensor, times: Tensor) -> Tensor:
    """The biases of all pairs of tokens: bias (H, 1 + K), times (B, S) → (B, H, S, S)."""
    return _Biases.apply(bias, times)


class _Biases(torch.autograd.Function):
    """A look-up whose gradient is summed in a fixed order."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, times: Tensor) -> Tensor:
        ctx.save_for_backward(bias, times)
        return _biases(bias, times)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        bias, times = ctx.saved_tensors
        total = bias.new_zeros(bias.shape, dtype=_sum_dtype(gradient))
        for piece in _pieces(gradient, total):
            _add_bias_gradient(total, gradient[piece], times[piece])
        return total.to(bias.dtype), None


def _biases(bias: Tensor, times: Tensor) -> Tensor:
    buckets = relative_buckets(times, bias.shape[1] - 1)
    return bias.index_select(1, buckets.flatten()).view(bias.shape[0], *buckets.shape).transpose(0, 1)


@torch.library.custom_op("ugt::biased_pointwise_product", mutates_args=())
def _product(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, times: Tensor, activation: str) -> Tensor:
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    with torch.autocast(q.device.type, enabled=False):
        for piece in _pieces(q, bias):
            scores = (q[piece] @ k[piece].transpose(-1, -2)).add_(_biases(bias, times[piece]))
            out[piece] = ACTIVATIONS[activation](scores, inplace=True) @ v[piece]
    return out


@torch.library.custom_op("ugt::biased_pointwise_product_backward", mutates_args=())
def _gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, times: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    grad_bias = bias.new_zeros(bias.shape, dtype=_sum_dtype(q))
    with torch.autocast(q.device.type, enabled=False):
        for piece in _pieces(q, bias):
            scores = (q[piece] @ k[piece].transpose(-1, -2)).add_(_biases(bias, times[piece]))
            grad_v[piece] = ACTIVATIONS[activation](scores).transpose(-1, -2) @ grad[piece]
            grad_scores = grad[piece] @ v[piece].transpose(-1, -2)
            multiply_by_slopes(grad_scores, scores, activation)
            grad_q[piece] = grad_scores @ k[piece]
            grad_k[piece] = grad_scores.transpose(-1, -2) @ q[piece]
            _add_bias_gradient(grad_bias, grad_scores, times[piece])
    return grad_q, grad_k, grad_v, grad_bias.to(bias.dtype)


def _add_bias_gradient(total: Tensor, grad_scores: Tensor, times: Tensor) -> None:
    """total (H, 1 + K) += the sums of grad_scores (B, H, S, S) over the pairs of tokens in each bucket."""
    buckets = relative_buckets(times, total.shape[1] - 1).flatten().to(total.dtype)
    numbers = torch.arange(total.shape[1], dtype=total.dtype, device=total.device)
    in_bucket = total.new_empty(len(numbers), len(buckets))
    torch.eq(numbers[:, None], buckets, out=in_bucket)
    of_heads = grad_scores.transpose(0, 1).flatten(1)
    if total.dtype == torch.float64:
        total += of_heads @ in_bucket.t()
    else:
        total += float32_matmul(of_heads, in_bucket.t())


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@_product.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, times: Tensor, activation: str) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


@_gradients.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, times: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return grad_q, grad_k, grad_v, torch.empty_like(bias)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, str], output: Tensor) -> None:
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(grad, *ctx.saved_tensors, ctx.activation), None, None


_product.register_autograd(_backward, setup_context=_save)


def _pieces(q: Tensor, bias: Tensor) -> Iterator[slice]:
    """Slices of rows of q (B, H, S, …) whose weights, and numbers per bucket, each stay within PIECE_BYTES; at least
    one row each."""
    bytes_per_row = q.shape[2] ** 2 * max(bias.shape) * 4
    size = max(1, PIECE_BYTES.get(q.device.type, PIECE_BYTES["cuda"]) // max(1, bytes_per_row))
    return (slice(start, start + size) for start in range(0, len(q), size))


@register_flop_formula(torch.ops.ugt.biased_pointwise_product)
def _operations(q_shape: torch.Size, k_shape: torch.Size, v_shape: torch.Size, *_: Any, **__: Any) -> int:
    """Two products, for PyTorch's FlopCounterMode."""
    return 2 * 2 * q_shape.numel() * k_shape[2]


@register_flop_formula(torch.ops.ugt.biased_pointwise_product_backward)
def _backward_operations(grad_shape: torch.Size, q_shape: torch.Size, k_shape: torch.Size, *_: Any, **__: Any) -> int:
    """Five products: the scores again, and the gradients of weights, q, k and v."""
    return 5 * 2 * q_shape.numel() * k_shape[2]
