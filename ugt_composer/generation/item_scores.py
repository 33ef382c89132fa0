"""The user-item score: what the contrastive term learns, as an opinion on every item of the catalogue.

Shapes: B users, n items, D width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def unit_vectors(x: Tensor) -> Tensor:
    """x (..., D), scaled to length 1 in float32."""
    return F.normalize(x.float(), dim=-1, eps=1e-6)


@dataclass(frozen=True, eq=False)
class ItemScores:
    """weight · log softmax over the catalogue of the cosines over the temperature.

    Attributes:
        users: (B, D) user vectors.
        items: (n, D) item vectors, in the order of `trie.items`.
        temperature: of the contrastive loss that they were trained with.
        weight: 0 and above.
    """

    users: Tensor
    items: Tensor
    temperature: float
    weight: float

    def __call__(self, rows: slice) -> Tensor:
        """float32 (b, n) for a slice of the users."""
        with torch.autocast(self.users.device.type, enabled=False):
            logits = unit_vectors(self.users[rows]) @ unit_vectors(self.items).T
            return self.weight * (logits / self.temperature).log_softmax(dim=-1)
