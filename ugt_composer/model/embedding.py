"""Embeddings of semantic IDs, positions and token types."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from ugt_composer.model.dropout import Dropout
from ugt_composer.vocabulary import PAD

EMBEDDING_STD = 0.02  # of embeddings at initialisation


class ItemEmbedding(nn.Module):
    """A vector per level and id; an item's vector is the sum over its levels. PAD is always the zero vector."""

    def __init__(self, codebook_sizes: Sequence[int], d_model: int):
        super().__init__()
        self.levels = nn.ModuleList(nn.Embedding(size, d_model, padding_idx=PAD) for size in codebook_sizes)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (..., l) int64 with l levels, at most 3 → (..., D), summed over these levels."""
        total = self.levels[0](ids[..., 0])
        for level in range(1, ids.shape[-1]):  # added one by one: for a large catalogue each takes gigabytes
            total = total + self.levels[level](ids[..., level])
        return total

    def table(self, level: int) -> Tensor:
        """The vectors of all ids of a level, (V_l, D). By the module, so that a strategy that shards weights gathers
        them."""
        weight = self.levels[level].get_parameter("weight")
        return self.levels[level](torch.arange(len(weight), device=weight.device))

    def output_weight(self, level: int) -> Tensor:
        """The level's table (V_l, D) as the weight of a softmax; PAD's row gets no gradient and stays zero."""
        return _WithoutPadGradient.apply(self.levels[level].get_parameter("weight"))


class _WithoutPadGradient(torch.autograd.Function):
    """The identity, without a copy; row PAD of the gradient is set to zero."""

    @staticmethod
    def forward(ctx: FunctionCtx, table: Tensor) -> Tensor:
        return table.view_as(table)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.clone()
        gradient[PAD] = 0
        return gradient


class InputEmbedding(nn.Module):
    """Item vector + position + token type, with layer norm and dropout."""

    def __init__(self, d_model: int, max_seq_len: int, num_token_types: int, dropout: float):
        super().__init__()
        self.position = nn.Embedding(max_seq_len, d_model)
        self.token_type = nn.Embedding(num_token_types, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)

    def forward(self, item_vectors: Tensor, positions: Tensor, token_types: Tensor) -> Tensor:
        """item_vectors (…, D), positions and token_types (…) int64 → (…, D)."""
        x = item_vectors + self.position(positions) + self.token_type(token_types)
        return self.dropout(self.norm(x))
