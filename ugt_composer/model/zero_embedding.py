"""An embedding that starts at zero, for inputs that a model may or may not read."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ZeroEmbedding(nn.Module):
    """A table of vectors that are zero at first and are added to those of tokens.

    So a model that reads one more input starts as the model that does not read it, with the same random weights.
    """

    def __init__(self, size: int, d_model: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, d_model))

    def forward(self, ids: Tensor) -> Tensor:
        """ids (…) int64 → (…, D)."""
        return F.embedding(ids, self.weight)
