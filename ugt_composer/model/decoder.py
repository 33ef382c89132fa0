"""The decoder: causal self-attention, cross-attention to the history, mixture-of-experts feed-forward."""

import torch
from torch import Tensor, nn

from ugt_composer.model.activation_checkpointing import run_layer
from ugt_composer.model.attention import CausalSelfAttention, CrossAttention
from ugt_composer.model.dropout import Dropout
from ugt_composer.model.history_tokens import EncodedHistory
from ugt_composer.model.moe import MoEFeedForward, RouterStats


class DecoderLayer(nn.Module):
    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        num_experts: int,
        top_k: int,
        capacity_factor: float | None,
        dropout: float,
        attention_dropout: float,
    ):
        super().__init__()
        self.self_norm = nn.LayerNorm(d_model)
        self.self_attention = CausalSelfAttention(d_model, n_heads, attention_dropout)
        self.cross_norm = nn.LayerNorm(d_model)
        self.cross_attention = CrossAttention(d_model, n_heads, attention_dropout)
        self.ff_norm = nn.LayerNorm(d_model)
        self.ff = MoEFeedForward(d_model, d_ff, num_experts, top_k, capacity_factor, dropout)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor, memory: EncodedHistory, keep_first: bool = False
    ) -> tuple[Tensor, RouterStats]:
        """x (B, T, D), mask (B, T) bool → (B, T, D), router sums.

        Args:
            keep_first: no expert drops the first token of a row, whatever its capacity.
        """
        x = x + self.dropout(self.self_attention(self.self_norm(x)))
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), memory))
        mixed, stats = self.ff(self.ff_norm(x), mask, keep_first)
        return x + self.dropout(mixed), stats


class Decoder(nn.Module):
    def __init__(self, n_layers: int, d_model: int, **layer_sizes):
        super().__init__()
        self.activation_checkpointing = False
        self.layers = nn.ModuleList(DecoderLayer(d_model=d_model, **layer_sizes) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)

    def forward(
        self, x: Tensor, mask: Tensor, memory: EncodedHistory, keep_first: bool = False
    ) -> tuple[Tensor, RouterStats]:
        """Arguments and result as for a layer, with stacked router sums: counts and prob_sums (layers, E)."""
        stats = []
        for layer in self.layers:
            x, layer_stats = run_layer(layer, self.activation_checkpointing, x, mask, memory, keep_first)
            stats.append(layer_stats)
        return self.norm(x), RouterStats(*(torch.stack(values) for values in zip(*stats, strict=True)))
