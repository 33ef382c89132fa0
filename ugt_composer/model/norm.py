"""Group layer norm: shared statistics, one scale and shift per token type."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupLayerNorm(nn.Module):
    """Layer norm whose γ and β belong to the token's type (MTGR, Meituan 2025).

    The statistics are those of layer norm, over D of one token; only the affine part differs between types, so that
    user, item, action and context tokens keep their own scales in one sequence.
    """

    def __init__(self, d_model: int, num_token_types: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_token_types, d_model))
        self.bias = nn.Parameter(torch.zeros(num_token_types, d_model))

    def forward(self, x: Tensor, token_types: Tensor) -> Tensor:
        """x (B, S, D), token_types (B, S) int64 → (B, S, D)."""
        normed = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return normed * F.embedding(token_types, self.weight) + F.embedding(token_types, self.bias)
