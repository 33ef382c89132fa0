"""Attention: pointwise (HSTU) for the encoder, softmax for the decoder.

B rows, S or T tokens, H heads, d = D / H. The encoder's tensors are (N, …) or (B, S, …), see `HistoryTokens`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt_composer import kernels
from ugt_composer.model.autocast import product_dtype
from ugt_composer.model.dropout import Dropout
from ugt_composer.model.history_tokens import EncodedHistory, HistoryTokens
from ugt_composer.model.pointwise_product import ACTIVATIONS, pointwise_product
from ugt_composer.model.time_bias import biased_pointwise_product, time_bias


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """(B, S, D) → (B, H, S, d)."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, S, d) → (B, S, D)."""
    return x.transpose(1, 2).flatten(-2)


class PointwiseAttention(nn.Module):
    """HSTU's pointwise aggregated attention (Zhai et al., 2024).

    Y = W_o (norm(A V) ⊙ φ(U)),  A = φ(Q Kᵀ / √d) / n,

    with φ = SiLU or ReLU in place of softmax, so that the output reflects the strength of a preference and not only its
    fraction of all preferences. n is the number of valid keys, so the scale does not depend on the length of the
    history. On a GPU in half precision, A V and norm(…) ⊙ φ(U) are a kernel each. Elsewhere the weights A are computed
    piece by piece, never as a whole, unless there is dropout on them.

    HSTU's relative time bias is a learnt number for each head and bucket of |t_i − t_j|, see `time_bucket`, added to
    Q Kᵀ / √d. The kernels have none, so a GPU then computes piece by piece, too.

    Args:
        bias_buckets: of the relative time bias; 0: none.
    """

    def __init__(self, d_model: int, n_heads: int, dropout: float, activation: str = "silu", bias_buckets: int = 0):
        super().__init__()
        self.n_heads = n_heads
        self.activation = activation
        self.in_proj = nn.Linear(d_model, 4 * d_model)
        self.norm = nn.LayerNorm(d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.dropout = Dropout(dropout)
        self.register_parameter("time_bias", None)
        if bias_buckets > 0:
            self.time_bias = nn.Parameter(torch.zeros(n_heads, 1 + bias_buckets))

    def forward(self, x: Tensor, tokens: HistoryTokens, times: Tensor | None = None) -> Tensor:
        """x (N, D) or (B, S, D) → the same.

        Args:
            times: int64 (B, S) seconds, negative where unknown; only with a relative time bias.
        """
        d_model = x.shape[-1]
        qkv, gate = self.in_proj(x).split((3 * d_model, d_model), dim=-1)
        if self._has_kernels(qkv):
            return self.out_proj(self._gated_by_kernels(qkv, gate, tokens))
        mask = tokens.mask
        q, k, v = (split_heads(t, self.n_heads) for t in tokens.pad(qkv).chunk(3, dim=-1))
        q = q / math.sqrt(q.shape[-1])
        # The mask and 1 / n are factors of each key's weight, so they can be applied to the values instead.
        v = v * (mask / mask.sum(-1, keepdim=True).clamp(min=1)).to(v.dtype)[:, None, :, None]
        mixed = self._plain(q, k, v) if self.time_bias is None else self._biased(q, k, v, times)
        return self.out_proj(self.norm(tokens.pack(merge_heads(mixed))) * ACTIVATIONS[self.activation](gate))

    def _plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.training and self.dropout.p > 0:
            return self.dropout(ACTIVATIONS[self.activation](q @ k.transpose(-1, -2))) @ v
        return pointwise_product(q, k, v, self.activation)

    def _biased(self, q: Tensor, k: Tensor, v: Tensor, times: Tensor | None) -> Tensor:
        assert times is not None
        if self.training and self.dropout.p > 0:
            scores = q @ k.transpose(-1, -2)
            scores = scores + time_bias(self.time_bias, times).to(scores.dtype)
            return self.dropout(ACTIVATIONS[self.activation](scores)) @ v
        return biased_pointwise_product(q, k, v, self.time_bias, times, self.activation)

    def _has_kernels(self, qkv: Tensor) -> bool:
        # In float32 without TF32, Triton's products are slower than cuBLAS'.
        is_half = qkv.dtype in (torch.bfloat16, torch.float16)
        fits = self.time_bias is None and kernels.attention_fits(qkv.shape[-1] // 3, self.n_heads)
        return is_half and fits and kernels.are_usable(qkv)

    def _gated_by_kernels(self, qkv: Tensor, gate: Tensor, tokens: HistoryTokens) -> Tensor:
        """norm(A V) ⊙ φ(U) given qkv (…, 3·D) and gate (…, D) → (…, D)."""
        from ugt_composer.kernels.group_layer_norm import group_layer_norm
        from ugt_composer.kernels.pointwise_attention import pointwise_attention

        mixed = pointwise_attention(
            qkv.flatten(0, -2),
            tokens.offsets(),
            tokens.mask.flatten() if tokens.places is None else None,
            tokens.mask.shape[1],
            self.n_heads,
            self.activation,
            self.dropout.p if self.training else 0.0,
        )
        norm = self.norm
        mixed = mixed.view(gate.shape)
        return group_layer_norm(
            mixed, None, norm.weight, norm.bias, norm.eps, product_dtype(mixed), gate, self.activation
        )


class CausalSelfAttention(nn.Module):
    """Softmax attention of each target token over itself and the earlier ones. Padding comes last, so the causal mask
    alone keeps valid tokens from attending to it."""

    def __init__(self, d_model: int, n_heads: int, dropout: float):
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) → (B, T, D)."""
        q, k, v = (split_heads(t, self.n_heads) for t in self.in_proj(x).chunk(3, dim=-1))
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(merge_heads(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)))


class CrossAttention(nn.Module):
    """Softmax attention of the target tokens over the encoded history."""

    def __init__(self, d_model: int, n_heads: int, dropout: float):
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(d_model, d_model)
        self.kv_proj = nn.Linear(d_model, 2 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, memory: EncodedHistory) -> Tensor:
        """x (B, T, D), with a valid token of memory in every row → (B, T, D)."""
        q = split_heads(self.q_proj(x), self.n_heads)
        kv = memory.tokens.pad(self.kv_proj(memory.vectors))
        k, v = (split_heads(t, self.n_heads) for t in kv.chunk(2, dim=-1))
        dropout, mask = self.dropout if self.training else 0.0, memory.tokens.mask
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :], dropout_p=dropout)
        return self.out_proj(merge_heads(mixed))
