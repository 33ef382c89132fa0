"""φ(Q Kᵀ) V without keeping the (S, S) weights: they are computed again in the backward pass, some heads at a time.

N heads of all rows together, S tokens, d width of a head. There is no softmax over the keys, so no head, and no row of
its weights, needs another one: pieces are exact.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}  # of the weights that exist at once: what a core's cache holds


def pointwise_product(q: Tensor, k: Tensor, v: Tensor, activation: str) -> Tensor:
    """q, k, v (N, S, d) → φ(q kᵀ) v, (N, S, d); φ is silu or relu."""
    if torch.compiler.is_compiling():
        return ACTIVATIONS[activation](q @ k.transpose(1, 2)) @ v  # the compiler makes its own pieces
    return _PointwiseProduct.apply(q, k, v, activation)


ACTIVATIONS = {"silu": F.silu, "relu": F.relu}


class _PointwiseProduct(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, activation: str) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.activation = activation
        out = torch.empty_like(v)
        for piece in _pieces(q, k):
            weights = torch.bmm(q[piece], k[piece].transpose(1, 2))
            torch.bmm(ACTIVATIONS[activation](weights, inplace=True), v[piece], out=out[piece])
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        grads = grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for piece in _pieces(q, k):
            scores = torch.bmm(q[piece], k[piece].transpose(1, 2))
            weights = ACTIVATIONS[ctx.activation](scores)
            torch.bmm(weights.transpose(1, 2), grad[piece], out=grad_v[piece])
            torch.bmm(grad[piece], v[piece].transpose(1, 2), out=weights)  # of the weights
            if ctx.activation == "silu":
                torch.ops.aten.silu_backward.grad_input(weights, scores, grad_input=weights)
            else:
                weights.masked_fill_(scores <= 0, 0.0)
            torch.bmm(weights, k[piece], out=grad_q[piece])
            torch.bmm(weights.transpose(1, 2), q[piece], out=grad_k[piece])
        return *grads, None


def _pieces(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Stretches of heads whose weights together stay within PIECE_BYTES; one head at least."""
    of_a_head = q.shape[1] * k.shape[1] * q.element_size()
    size = max(1, PIECE_BYTES.get(q.device.type, PIECE_BYTES["cuda"]) // max(1, of_a_head))
    return (slice(start, start + size) for start in range(0, len(q), size))
