"""The nodes of a trie that lead to items of each history.

Shapes: B users, S history tokens, n_l nodes at level l.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ugt_composer.catalogue.open_nodes import distinct_nodes, is_first
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.vocabulary import LEVELS


class SeenNodes(NamedTuple):
    """For each level, the nodes with an item of the history below.

    Attributes:
        nodes: three int64 (B, S), ascending in each row and padded with n_l.
        fractions: three float32 (B, S): how many of the items below the node are in the history; 1 for an item, 0 in
            padding.
    """

    nodes: tuple[Tensor, ...]
    fractions: tuple[Tensor, ...]

    @classmethod
    def of(cls, ids: Tensor, trie: ItemTrie) -> "SeenNodes":
        """ids: int64 (B, S, 3); tokens that are not items of the trie are left out."""
        items = trie.find(ids)
        items = distinct_nodes(torch.where(items < 0, len(trie), items), len(trie))
        nodes, fractions = [items], [(items < len(trie)).float()]
        first: Tensor | None = None  # item below each node
        above = items
        for here in reversed(trie.levels[1:]):
            first = here.first if first is None else first[here.first]
            count = len(first) - 1
            # The parents of the distinct items, ascending, so each is repeated once for each of its items.
            above = torch.where(above < len(here), here.parents[above.clamp(max=len(here) - 1)], count)
            seen = torch.searchsorted(above, above, right=True) - torch.searchsorted(above, above)
            is_node = is_first(above) & (above < count)
            valid = above.clamp(max=count - 1)
            fraction = (seen / (first[valid + 1] - first[valid])).masked_fill(~is_node, 0.0)
            distinct, order = above.masked_fill(~is_node, count).sort(1)
            nodes.append(distinct)
            fractions.append(fraction.gather(1, order))
        assert len(nodes) == LEVELS
        return cls(tuple(nodes[::-1]), tuple(fractions[::-1]))
