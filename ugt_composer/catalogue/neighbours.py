"""Item neighbours: for each item, the items that users chose after it or near it, with their probabilities.

A count of the training interactions, from a file that the import writes. It knows what a model with item vectors
of some hundred dimensions cannot hold: which single item follows which.

Shapes: n items, K neighbours of each at most, B rows, S history tokens, H recent items.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ugt_composer.catalogue.neighbour_file import read_neighbours
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.errors import UserError

ROWS_AT_ONCE = 1 << 16  # of a file
RECENT = 20  # items of a history that count, the most recent ones
DECAY = 0.4  # of an item's weight per later item; chosen on the validation items of Amazon Beauty


@dataclass(frozen=True, eq=False)
class ItemNeighbours:
    """
    Attributes:
        neighbours: int32 or int64 (n, K), item indices of the trie; n where an item has fewer than K neighbours.
        probabilities: float32 (n, K), of each row at most 1 in total; 0 where there is no neighbour.
    """

    neighbours: Tensor
    probabilities: Tensor

    def to(self, device: torch.device | str) -> "ItemNeighbours":
        return ItemNeighbours(self.neighbours.to(device), self.probabilities.to(device))

    def __call__(self, recent: Tensor) -> Tensor:
        """The probabilities of all items to be next, float32 (B, n): a mean over the recent items, int64 (B, H), the
        newest first, -1 where there is none. An item weighs DECAY times as much as the one after it."""
        neighbours, values = self.pairs(recent)
        items = len(self.neighbours)
        return values.new_zeros(len(recent), items + 1).scatter_add(1, neighbours, values)[:, :items]

    def pairs(self, recent: Tensor) -> tuple[Tensor, Tensor]:
        """The neighbours of the recent items, int64 (B, H K), in any order, n where there is none; and what each adds
        to its probability."""
        is_item = recent >= 0
        weights = is_item * DECAY ** torch.arange(recent.shape[1], device=recent.device)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        rows = recent.clamp(min=0)
        values = (self.probabilities[rows] * weights.unsqueeze(-1)).flatten(1)
        return self.neighbours[rows].flatten(1).long(), values


def recent_items(ids: Tensor, mask: Tensor, trie: ItemTrie) -> Tensor:
    """The item indices of each history's most recent items, newest first: int64 (B, H), -1 where there are no more.

    ids int64 (B, S, 3), mask bool (B, S). Tokens that are no item of the catalogue are left out.
    """
    items = trie.find(ids).masked_fill(~mask, -1)
    places = torch.where(items >= 0, torch.arange(ids.shape[1], device=ids.device), -1)
    newest = places.topk(min(RECENT, ids.shape[1]), dim=1).values  # sorted, largest first
    return items.gather(1, newest.clamp(min=0)).masked_fill(newest < 0, -1)


def load_neighbours(path: str, trie: ItemTrie) -> ItemNeighbours:
    """Reads a file of `save_neighbours` for a catalogue that has all of its items.

    Raises:
        UserError: it cannot be read, is no such file, or was made with other semantic IDs.
    """
    ids, rows, probabilities = read_neighbours(path)
    index = trie.find(torch.from_numpy(ids)).numpy()
    if missing := int((index < 0).sum()):
        raise UserError(
            f"{path}: {missing:,} of its {len(ids):,} items are not in the catalogue, so it is from another import; "
            "expected the item_neighbours.npz that was written with this catalogue"
        )
    items, most = len(trie), rows.shape[1]
    neighbours = np.full((items, most), items, np.int32)
    values = np.zeros((items, most), np.float32)
    # Some rows at a time, because an array of int64 would be larger than the result. Items that share a semantic ID are
    # one item of the trie: the neighbours of the last one are used.
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        exists = rows[part] >= 0
        neighbours[index[part]] = np.where(exists, index[rows[part].clip(min=0)], items)
        values[index[part]] = np.where(exists, probabilities[part], 0.0)
    return ItemNeighbours(torch.from_numpy(neighbours), torch.from_numpy(values))
