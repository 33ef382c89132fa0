"""The user-item score: the similarity that the contrastive loss trains, for every item of the catalogue.

Shapes: B users, n items, D width.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ugt_composer.float32_product import float32_matmul

Similarity = Literal["cosine", "dot"]


def comparable(x: Tensor, similarity: Similarity) -> Tensor:
    """x (..., D) in float32, scaled to length 1 for cosine, so that products of vectors are their similarities."""
    return x.float() if similarity == "dot" else F.normalize(x.float(), dim=-1, eps=1e-6)


@dataclass(frozen=True, eq=False)
class ItemScores:
    """weight · log softmax, over the catalogue, of similarity / temperature.

    Attributes:
        users: (B, D) user vectors.
        items: (n, D) item vectors, in the order of `trie.items`.
        temperature, similarity: those of the contrastive loss that the vectors were trained with.
        weight: 0 or larger.
    """

    users: Tensor
    items: Tensor
    temperature: float
    weight: float
    similarity: Similarity = "cosine"

    def __call__(self, rows: slice) -> Tensor:
        """float32 (b, n) for a slice of the users."""
        users = comparable(self.users[rows], self.similarity)
        logits = float32_matmul(users, self._centred_items.T) / self.temperature
        return self.weight * logits.log_softmax(dim=-1)

    @cached_property
    def _centred_items(self) -> Tensor:
        """(n, D). Subtracting the mean does not change the softmax; without it, a large component that all items share
        would take up the digits in which their scores differ."""
        items = comparable(self.items, self.similarity)
        return items - items.mean(dim=0)
