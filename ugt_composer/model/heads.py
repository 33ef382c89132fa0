"""The three output heads, each conditional on the levels above it.

log p(item | h) = log p(l1 | h) + log p(l2 | h, l1) + log p(l3 | h, l1, l2). Independent heads would model
p(l1)·p(l2)·p(l3), which gives mass to items that do not exist.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt_composer.model.embedding import ItemEmbedding


class LevelHead(nn.Module):
    """Logits of one level: the hidden state, corrected by the ids chosen above, against the level's id vectors."""

    def __init__(self, level: int, codebook_size: int, d_model: int, tied: bool):
        super().__init__()
        if level > 0:
            self.hidden_proj = nn.Linear(d_model, d_model)
            self.prefix_proj = nn.Linear(d_model, d_model, bias=False)
            self.out_proj = nn.Linear(d_model, d_model)
        self.level = level
        self.norm = nn.LayerNorm(d_model)
        self.bias = nn.Parameter(torch.zeros(codebook_size))
        self.weight = None if tied else nn.Parameter(torch.empty(codebook_size, d_model))

    def forward(self, hidden: Tensor, prefix: Tensor, embedding: ItemEmbedding) -> Tensor:
        """hidden (..., D), prefix (..., level) int64 → logits (..., V_level)."""
        if self.level > 0:
            mixed = F.silu(self.hidden_proj(hidden) + self.prefix_proj(embedding(prefix)))
            hidden = hidden + self.out_proj(mixed)
        weight = embedding.output_weight(self.level) if self.weight is None else self.weight
        return F.linear(self.norm(hidden), weight, self.bias)


class LevelHeads(nn.Module):
    def __init__(self, codebook_sizes: Sequence[int], d_model: int, tied: bool):
        super().__init__()
        self.heads = nn.ModuleList(LevelHead(level, size, d_model, tied) for level, size in enumerate(codebook_sizes))

    def forward(self, level: int, hidden: Tensor, prefix: Tensor, embedding: ItemEmbedding) -> Tensor:
        """Logits (..., V_level) of level 0, 1 or 2 given hidden (..., D) and the ids above, prefix (..., level)."""
        return self.heads[level](hidden, prefix, embedding)
