"""The user-item score: the similarity that the contrastive loss trains, for every item of the catalogue.

Shapes: B users, n items, D width.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ugt_composer.catalogue.neighbours import ItemNeighbours, recent_items
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.data.batch import Batch
from ugt_composer.float32_product import float32_matmul
from ugt_composer.generation.catalogue_vectors import CatalogueVectors

Similarity = Literal["cosine", "dot"]


def comparable(x: Tensor, similarity: Similarity) -> Tensor:
    """x (..., D) in float32, scaled to length 1 for cosine, so that products of vectors are their similarities."""
    return x.float() if similarity == "dot" else F.normalize(x.float(), dim=-1, eps=1e-6)


@dataclass(frozen=True, eq=False)
class NeighbourScores:
    """The probabilities that the neighbours of B users' recent items are next.

    Attributes:
        neighbours: of the items of the catalogue.
        recent: int64 (B, H), see `recent_items`.
        weight: fraction of the user-item score that these probabilities make up, from 0 to below 1.
    """

    neighbours: ItemNeighbours
    recent: Tensor
    weight: float

    @classmethod
    def of(cls, batch: Batch, trie: ItemTrie, neighbours: ItemNeighbours, weight: float) -> "NeighbourScores":
        return cls(neighbours, recent_items(batch["encoder_ids"], batch["encoder_mask"], trie), weight)

    def pairs(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The neighbours int64 (b, E) of all recent items, n where there is none, and their probabilities (b, E)."""
        return self.neighbours.pairs(self.recent[rows])

    def mixed(self, log_probs: Tensor, rows: slice) -> Tensor:
        """log((1 - weight) · probs + weight · neighbours' probabilities), given log_probs float32 (b, n)."""
        counted = self.neighbours(self.recent[rows])
        return torch.logaddexp(log_probs + math.log1p(-self.weight), (counted * self.weight).log())


class SeenItems(NamedTuple):
    """The items of B histories, and what is added to their logits.

    Attributes:
        items: int64 (B, S), ascending in each row and padded with n.
        biases: float32 (B, 1).
    """

    items: Tensor
    biases: Tensor

    def added_to(self, logits: Tensor, rows: slice, first: int = 0) -> Tensor:
        """The logits (b, m) of m consecutive items, from the item `first` on, with the biases of a slice of users."""
        items = self.items[rows] - first
        is_here = (items >= 0) & (items < logits.shape[1])
        values = self.biases[rows].to(logits.dtype).expand(-1, items.shape[1]).masked_fill(~is_here, 0.0)
        return logits.scatter_add(1, items.clamp(0, logits.shape[1] - 1), values)


@dataclass(frozen=True, eq=False)
class ItemScores:
    """weight · log softmax, over the catalogue, of similarity / temperature.

    With `neighbours` the probabilities are a mixture of this softmax and of what followed the user's recent items in
    training, as language models are interpolated with counts (Khandelwal et al., 2020). With `repeats` the biases are
    added to its logarithm, which is normalised again.

    Attributes:
        users: (B, D) user vectors.
        items: (n, D) item vectors, in the order of `trie.items`; or those of a large catalogue.
        temperature, similarity: those of the contrastive loss that the vectors were trained with.
        weight: 0 or larger.
        neighbours: of the same users; None: no mixture.
        repeats: of the same users; None: items of the history are like others.
    """

    users: Tensor
    items: Tensor | CatalogueVectors
    temperature: float
    weight: float
    similarity: Similarity = "cosine"
    neighbours: NeighbourScores | None = None
    repeats: SeenItems | None = None

    def __call__(self, rows: slice) -> Tensor:
        """float32 (b, n) for a slice of the users."""
        users = comparable(self.users[rows], self.similarity)
        items = self.comparable_items
        if isinstance(items, CatalogueVectors):
            logits = items.of_block(items.products(users / self.temperature), 0, len(items.ids))
        else:
            logits = float32_matmul(users, items.T) / self.temperature
        log_probs = logits.log_softmax(dim=-1)
        if self.neighbours is not None:
            log_probs = self.neighbours.mixed(log_probs, rows)
        if self.repeats is not None:
            log_probs = self.repeats.added_to(log_probs, rows).log_softmax(dim=-1)
        return self.weight * log_probs

    @cached_property
    def comparable_items(self) -> Tensor | CatalogueVectors:
        """(n, D). Subtracting the mean does not change the softmax; without it, a large component that all items share
        would take up the digits in which their scores differ."""
        if isinstance(self.items, CatalogueVectors):
            is_ready = self.similarity == "dot" or self.items.scales is not None
            return self.items if is_ready else self.items.normalised()
        items = comparable(self.items, self.similarity)
        return items - items.mean(dim=0)
