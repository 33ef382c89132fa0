"""The user-item score: what the contrastive term learns, as an opinion on every item of the catalogue.

Shapes: B users, n items, D width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Similarity = Literal["cosine", "dot"]


def comparable(x: Tensor, similarity: Similarity) -> Tensor:
    """x (..., D) in float32, such that products of vectors are their similarities: for cosines scaled to length 1."""
    return x.float() if similarity == "dot" else F.normalize(x.float(), dim=-1, eps=1e-6)


@dataclass(frozen=True, eq=False)
class ItemScores:
    """weight · log softmax over the catalogue of the similarities over the temperature.

    Attributes:
        users: (B, D) user vectors.
        items: (n, D) item vectors, in the order of `trie.items`.
        temperature, similarity: of the contrastive loss that they were trained with.
        weight: 0 and above.
    """

    users: Tensor
    items: Tensor
    temperature: float
    weight: float
    similarity: Similarity = "cosine"

    def __call__(self, rows: slice) -> Tensor:
        """float32 (b, n) for a slice of the users."""
        with torch.autocast(self.users.device.type, enabled=False):
            users, items = (comparable(x, self.similarity) for x in (self.users[rows], self.items))
            logits = users @ items.T
            return self.weight * (logits / self.temperature).log_softmax(dim=-1)
