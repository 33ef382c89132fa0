"""The encoder: pointwise attention and feed-forward, with a pre-norm per token type.

Its tensors are (N, …) or (B, S, …), see `HistoryTokens`.
"""

from torch import Tensor, nn

from ugt_composer.model.activation_checkpointing import run_layer
from ugt_composer.model.attention import PointwiseAttention
from ugt_composer.model.dropout import Dropout
from ugt_composer.model.history_tokens import HistoryTokens
from ugt_composer.model.norm import GroupLayerNorm


class FeedForward(nn.Module):
    """D → F → D with SiLU."""

    def __init__(self, d_model: int, d_ff: int, dropout: float):
        super().__init__()
        self.up = nn.Linear(d_model, d_ff)
        self.down = nn.Linear(d_ff, d_model)
        self.activation = nn.SiLU()
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) → (..., D)."""
        return self.down(self.dropout(self.activation(self.up(x))))


class EncoderLayer(nn.Module):
    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        num_token_types: int,
        dropout: float,
        attention_dropout: float,
        activation: str,
        bias_buckets: int = 0,
    ):
        super().__init__()
        self.attention_norm = GroupLayerNorm(d_model, num_token_types, for_products=True)
        self.attention = PointwiseAttention(d_model, n_heads, attention_dropout, activation, bias_buckets)
        self.ff_norm = GroupLayerNorm(d_model, num_token_types, for_products=True)
        self.ff = FeedForward(d_model, d_ff, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, token_types: Tensor, tokens: HistoryTokens, times: Tensor | None = None) -> Tensor:
        """x (N, D) or (B, S, D), token_types (N,) or (B, S) int64, times (B, S) int64 for a relative time bias
        → as x."""
        x = x + self.dropout(self.attention(self.attention_norm(x, token_types), tokens, times))
        return x + self.dropout(self.ff(self.ff_norm(x, token_types)))


class Encoder(nn.Module):
    def __init__(self, n_layers: int, d_model: int, num_token_types: int, **layer_sizes):
        super().__init__()
        self.activation_checkpointing = False
        self.layers = nn.ModuleList(
            EncoderLayer(d_model=d_model, num_token_types=num_token_types, **layer_sizes) for _ in range(n_layers)
        )
        self.norm = GroupLayerNorm(d_model, num_token_types)

    def forward(self, x: Tensor, token_types: Tensor, tokens: HistoryTokens, times: Tensor | None = None) -> Tensor:
        """Arguments and result as for a layer."""
        for layer in self.layers:
            x = run_layer(layer, self.activation_checkpointing, x, token_types, tokens, times)
        return self.norm(x, token_types)
