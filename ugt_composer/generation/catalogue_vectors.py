"""The item vectors of a catalogue that is too large to hold one vector per item.

An item's vector is a projection of a sum of level embeddings, so it is a sum of rows of three small tables of projected
embeddings. Vectors are computed from these for some items at a time. A user's product with an item is the sum of three
products, of which there are only as many as codebooks have ids.

Shapes: n items of the catalogue, L = 3 levels, V_l codebook size of level l, D width of the vectors, B users.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.float32_product import float32_matmul

HELD_BYTES = 256 * 2**20  # of the vectors of all items, up to which they are held
BLOCK_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}  # of the vectors of the items that are computed at once
MEAN_ITEMS = 1 << 16  # that a mean of cosines' vectors is taken over


def are_held(items: int, width: int) -> bool:
    """Whether the float32 vectors of all items of a catalogue are held."""
    return 4 * items * width <= HELD_BYTES


class CatalogueVectors(NamedTuple):
    """
    Attributes:
        ids: int64 (n, 3), in the order of `trie.items`.
        tables: three float32 (V_l, D).
        counts: three int64 (up to V_l,), how many items have each id.
        scales: float32 (n,), that vectors are multiplied by; None: they are not.
    """

    ids: Tensor
    tables: tuple[Tensor, ...]
    counts: tuple[Tensor, ...]
    scales: Tensor | None = None

    @classmethod
    def of(cls, trie: ItemTrie, tables: tuple[Tensor, ...]) -> "CatalogueVectors":
        return cls(trie.items, tables, trie.id_counts)

    @property
    def block(self) -> int:
        """How many items' vectors are computed at once."""
        return max(1, BLOCK_BYTES[self.ids.device.type] // (4 * self.tables[0].shape[1]))

    def mean(self) -> Tensor:
        """The mean of the vectors, without scales: (D,), with gradient."""
        of_levels = [
            counts.to(table.dtype) / len(self.ids) @ table[: len(counts)]
            for counts, table in zip(self.counts, self.tables, strict=True)
        ]
        return of_levels[0] + of_levels[1] + of_levels[2]

    @torch.no_grad()
    def mean_direction(self) -> Tensor:
        """The mean of the vectors of length 1 of MEAN_ITEMS items, evenly spread: (D,)."""
        some = self.ids[:: max(1, len(self.ids) // MEAN_ITEMS)]
        return torch.cat([F.normalize(self.at(ids), dim=-1, eps=1e-6) for ids in some.split(self.block)]).mean(dim=0)

    def at(self, ids: Tensor) -> Tensor:
        """The vectors, without scales, of items ids (m, 3): float32 (m, D)."""
        return vectors_at(ids, *self.tables)

    @torch.no_grad()
    def normalised(self) -> "CatalogueVectors":
        """With the scales that give every vector length 1."""
        lengths = [self.at(ids).norm(dim=1) for ids in self.ids.split(self.block)]
        return self._replace(scales=1 / torch.cat(lengths).clamp(min=1e-6))

    def products(self, users: Tensor) -> tuple[Tensor, ...]:
        """Of users float32 (B, D) with the rows of each table: three (B, V_l). Minus each user's mean over the items,
        if they have no scales: a large component that all items share would take up the digits in which they differ."""
        products = []
        for counts, table in zip(self.counts, self.tables, strict=True):
            mean = counts.to(table.dtype) / len(self.ids) @ table[: len(counts)] if self.scales is None else 0.0
            products.append(float32_matmul(users, (table - mean).T))
        return tuple(products)

    def of_block(self, products: tuple[Tensor, ...], first: int, last: int) -> Tensor:
        """The users' products with the items from `first` to before `last`, (B, last - first)."""
        l1, l2, l3 = (table.index_select(1, self.ids[first:last, at]) for at, table in enumerate(products))
        total = l1.add_(l2).add_(l3)
        return total if self.scales is None else total.mul_(self.scales[first:last])

    def of_items(self, products: tuple[Tensor, ...], items: Tensor) -> Tensor:
        """The users' products with items int64 (B, R) each: (B, R)."""
        ids = self.ids[items]
        l1, l2, l3 = (table.gather(1, ids[..., at]) for at, table in enumerate(products))
        total = l1 + l2 + l3
        return total if self.scales is None else total * self.scales[items]


def vectors_at(ids: Tensor, *tables: Tensor) -> Tensor:
    """The sums (m, D) of the rows ids (m, 3) of three tables (V_l, D)."""
    total = F.embedding(ids[:, 0], tables[0])
    for level in range(1, len(tables)):
        total = total + F.embedding(ids[:, level], tables[level])
    return total
