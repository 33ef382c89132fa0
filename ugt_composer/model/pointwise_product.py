"""φ(Q Kᵀ) V without storing the (S, S) weights: they are recomputed in the backward pass, a few heads at a time.

N heads of all rows together, S tokens, d width of a head. Heads are independent, so computing them piece by piece is
exact.

Forward and backward are custom operators (`torch.library`), which a compiler leaves unchanged; otherwise it would store
the weights of all heads. In half precision φ's values are rounded before they multiply V, as in the plain formula.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ugt_composer.kernels import is_exporting
from ugt_composer.model.autocast import product_dtype

# Of one piece of weights, of which the backward pass holds two; on a CPU, what a core's cache holds.
PIECE_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
ACTIVATIONS = {"silu": F.silu, "relu": F.relu}


def pointwise_product(q: Tensor, k: Tensor, v: Tensor, activation: str) -> Tensor:
    """q, k, v (…, S, d) → φ(q kᵀ) v, (…, S, d); φ is silu or relu. Under autocast the result has autocast's
    dtype."""
    if is_exporting():
        # Rows and heads stay separate dimensions: since PyTorch 2.11, merging them limits the lengths that the program
        # accepts.
        return ACTIVATIONS[activation](q @ k.transpose(-1, -2)) @ v
    heads = v.shape[:-2]
    q, k, v = (x.to(product_dtype(x)).flatten(0, -3) for x in (q, k, v))
    return _product(q, k, v, activation).unflatten(0, heads)


@torch.library.custom_op("ugt::pointwise_product", mutates_args=())
def _product(q: Tensor, k: Tensor, v: Tensor, activation: str) -> Tensor:
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    with torch.autocast(q.device.type, enabled=False):
        for piece in _pieces(q, k):
            weights = torch.bmm(q[piece], k[piece].transpose(1, 2))
            torch.bmm(ACTIVATIONS[activation](weights, inplace=True), v[piece], out=out[piece])
    return out


@torch.library.custom_op("ugt::pointwise_product_backward", mutates_args=())
def _gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    with torch.autocast(q.device.type, enabled=False):
        for piece in _pieces(q, k):
            scores = torch.bmm(q[piece], k[piece].transpose(1, 2))
            weights = ACTIVATIONS[activation](scores)
            torch.bmm(weights.transpose(1, 2), grad[piece], out=grad_v[piece])
            torch.bmm(grad[piece], v[piece].transpose(1, 2), out=weights)  # the gradient of the weights
            multiply_by_slopes(weights, scores, activation)
            torch.bmm(weights, k[piece], out=grad_q[piece])
            torch.bmm(weights.transpose(1, 2), q[piece], out=grad_k[piece])
    return grad_q, grad_k, grad_v


def multiply_by_slopes(gradient: Tensor, scores: Tensor, activation: str) -> None:
    """gradient ← gradient ⊙ φ'(scores)."""
    if activation == "silu":
        torch.ops.aten.silu_backward.grad_input(gradient, scores, grad_input=gradient)
    else:
        gradient.masked_fill_(scores <= 0, 0.0)


@_product.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, activation: str) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


@_gradients.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return grad_q, grad_k, grad_v


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, str], output: Tensor) -> None:
    q, k, v, ctx.activation = inputs
    ctx.save_for_backward(q, k, v)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients(grad, *ctx.saved_tensors, ctx.activation), None


_product.register_autograd(_backward, setup_context=_save)


def _pieces(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Slices of heads whose weights together stay within PIECE_BYTES; at least one head each."""
    bytes_per_head = q.shape[1] * k.shape[1] * q.element_size()
    size = max(1, PIECE_BYTES.get(q.device.type, PIECE_BYTES["cuda"]) // max(1, bytes_per_head))
    return (slice(start, start + size) for start in range(0, len(q), size))


@register_flop_formula(torch.ops.ugt.pointwise_product)
def _operations(q_shape: torch.Size, k_shape: torch.Size, *_: Any, **__: Any) -> int:
    """Two products, of q (N, S, d) and k (N, T, d), for PyTorch's FlopCounterMode."""
    return 2 * 2 * q_shape.numel() * k_shape[1]


@register_flop_formula(torch.ops.ugt.pointwise_product_backward)
def _backward_operations(grad_shape: torch.Size, q_shape: torch.Size, k_shape: torch.Size, *_: Any, **__: Any) -> int:
    """Five products: the scores again, and the gradients of weights, q, k and v."""
    return 5 * 2 * q_shape.numel() * k_shape[1]
