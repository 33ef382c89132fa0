"""The catalogue as a trie of semantic IDs, stored in tensors: what generation may produce.

Shapes: n items, n_l nodes at level l (n_2 = n), B batch, W beams, R slots, X excluded items.

A node of level l is a distinct prefix (l1, .. of l + 1 ids). Nodes of a level are numbered in lexicographic order of
their prefixes, so the children of a node are consecutive (compressed sparse rows), and the nodes of the last level
are the items, sorted. The root is "node 0 of level -1".
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.open_nodes import NodeLimits, OnlyItems, OpenNodes, distinct_nodes, is_among
from ugt_composer.vocabulary import LEVELS


class Children(NamedTuple):
    """The children of some beams, laid out in slots; slots are in ascending order of nodes if the beams are.

    Attributes:
        beam: int64 (B, R) beam that the slot belongs to.
        ids: int64 (B, R) id of the child at its level.
        nodes: int64 (B, R) number of the child among the nodes of its level.
        filled: bool (B, R) False if the slot is empty; the others then have a valid value that keeps `nodes` ascending.
    """

    beam: Tensor
    ids: Tensor
    nodes: Tensor
    filled: Tensor


@dataclass(frozen=True, eq=False)
class TrieLevel:
    """The nodes of one level. n_l nodes, m nodes at the level above (the root is one).

    Attributes:
        ids: int64 (n_l,) the last id of each node's prefix.
        parents: int64 (n_l,) node of the level above.
        first: int64 (m + 1,) children of node p above are nodes first[p] .. first[p + 1] - 1 of this level.
        keys: int64 (n_l,) parents * radix + ids, ascending, for look-ups by binary search.
        radix: largest id + 1.
        widest: the maximum number of children of any 1, 2, .. m different nodes above, so that the number of slots
            is known without a device sync.
    """

    ids: Tensor
    parents: Tensor
    first: Tensor
    keys: Tensor
    radix: int
    widest: np.ndarray

    def to(self, device: torch.device | str) -> "TrieLevel":
        moved = {name: getattr(self, name).to(device) for name in ("ids", "parents", "first", "keys")}
        return replace(self, **moved)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class ItemTrie:
    """All items and their prefixes.

    Attributes:
        items: int64 (n, 3) distinct triples in lexicographic order; "item index" everywhere means a row of this.
        levels: the nodes of the three levels.
        members: int64 (n,) how many items of the catalogue share each triple.
        catalogue_size: how many items the catalogue has, which is the sum of `members`.
        widest_items: int64 (n_0,) the maximum number of items below any 1, 2, .. n_0 nodes of the first level.
        open: what may be recommended; None: everything.
    """

    items: Tensor
    levels: tuple[TrieLevel, ...]
    members: Tensor
    catalogue_size: int
    widest_items: np.ndarray
    open: OpenNodes | None = None

    @classmethod
    def from_catalogue(cls, catalogue: Catalogue) -> "ItemTrie":
        """The trie of all items, of which those that the catalogue withholds are not recommended."""
        columns = catalogue.columns
        withheld = catalogue.withheld[columns.by_triple_and_id] if catalogue.withheld.any() else None
        return cls._from_ordered(columns.ordered, withheld)

    @classmethod
    def from_triples(cls, triples: np.ndarray | Tensor, withheld: np.ndarray | None = None) -> "ItemTrie":
        """Builds the trie of int (n, 3) triples in any order; repeated triples become one item of several
        `members`, numbered in their order here.

        Args:
            withheld: bool (n,) items that are in the trie, but not recommended; None: all are recommended.
        """
        rows = np.asarray(triples, dtype=np.int64)
        if rows.ndim != 2 or rows.shape[1] != LEVELS or len(rows) == 0:
            raise ValueError(f"a trie is built from (n, {LEVELS}) ids of at least one item, found shape {rows.shape}")
        if rows.min() < 0:
            raise ValueError(f"a trie is built from ids of at least 0, found {rows.min()}")
        order = np.lexsort(rows.T[::-1])  # stable
        return cls._from_ordered(rows[order].T, None if withheld is None else withheld[order])

    @classmethod
    def _from_ordered(cls, columns: np.ndarray, withheld: np.ndarray | None) -> "ItemTrie":
        """`from_triples` of int64 (3, n) ids whose items are in lexicographic order."""
        count = columns.shape[1]
        begins = np.zeros(count, dtype=bool)  # whether a new prefix begins at an item
        begins[0] = True
        nodes = np.zeros(count, dtype=np.int64)  # of the items, at the level above
        levels = []
        for column in columns:
            begins[1:] |= column[1:] != column[:-1]
            at = np.flatnonzero(begins)
            levels.append(_level(column[at], nodes[at]))
            nodes = begins.cumsum() - 1
        members = np.diff(at, append=count)
        items = np.stack([column[at] for column in columns], axis=1)
        parts = torch.from_numpy(items), tuple(levels), torch.from_numpy(members)
        items_below = np.diff(levels[2].first.numpy()[levels[1].first.numpy()])
        is_open = None if withheld is None else torch.from_numpy(~withheld)
        open_nodes = None
        if is_open is not None:
            open_nodes = OpenNodes.of(is_open, parts[2], [(level.parents, len(level.first) - 1) for level in levels])
        return cls(*parts, count, np.sort(items_below)[::-1].cumsum(), open_nodes)

    def to(self, device: torch.device | str) -> "ItemTrie":
        """A copy on a device, where beam search needs it."""
        levels = tuple(level.to(device) for level in self.levels)
        open_nodes = None if self.open is None else self.open.to(device)
        items, members = self.items.to(device), self.members.to(device)
        return replace(self, items=items, levels=levels, members=members, open=open_nodes)

    def __len__(self) -> int:
        return len(self.items)

    def means(self, values: np.ndarray, triples: np.ndarray) -> Tensor:
        """float32 (n,), for each triple of the trie, the mean of the values (m,) of the items, triples (m, 3), that
        share it; 0 where there is none."""
        at = self.find(torch.from_numpy(triples)).numpy()
        sums = np.bincount(at, weights=values, minlength=len(self))
        return torch.from_numpy(sums / np.bincount(at, minlength=len(self)).clip(1)).float()

    @property
    def has_shared_ids(self) -> bool:
        """Whether several items of the catalogue have the same triple."""
        return self.catalogue_size > len(self)

    @property
    def recommendable(self) -> int:
        """How many items of the catalogue may be recommended."""
        return self.catalogue_size if self.open is None else len(self.open.numbers)

    def slots(self, level: int, width: int) -> int:
        """The number of slots needed for the children, at `level`, of any `width` different nodes above."""
        widest = self.levels[level].widest
        return int(widest[min(width, len(widest)) - 1])

    @cached_property
    def first_items(self) -> Tensor:
        """int64 (n_0 + 1,): the items below node p of the first level are first_items[p] .. first_items[p + 1] - 1."""
        return self.levels[2].first[self.levels[1].first]

    def slots_of_items(self, width: int) -> int:
        """The number of slots needed for the items below any `width` different nodes of the first level."""
        return int(self.widest_items[min(width, len(self.widest_items)) - 1])

    def first_level_nodes(self, first: int, last: int) -> Tensor:
        """The node of the first level above each item from `first` to before `last`: int64 (last - first,)."""
        return self.levels[1].parents[self.levels[2].parents[first:last]]

    @cached_property
    def id_counts(self) -> tuple[Tensor, ...]:
        """How many of the n triples have each id of each level: three int64 (radix of the level,)."""
        return tuple(torch.bincount(ids) for ids in self.items.T)

    def check(self, codebook_sizes: tuple[int, ...]) -> None:
        """Raises ValueError if an item's id is outside its codebook."""
        for number, (level, size) in enumerate(zip(self.levels, codebook_sizes, strict=True), start=1):
            if level.radix > size:
                raise ValueError(f"the catalogue has l{number} id {level.radix - 1}, the codebook {size} ids (from 0)")

    def children(self, level: int, nodes: Tensor, alive: Tensor) -> Children:
        """Children, at `level`, of different nodes above, int64 (B, W); nodes with `alive` (B, W) False have none.

        The ragged children are packed one beam after the other, so that R is the sum of the W largest numbers of
        children instead of W times the largest one.
        """
        here = self.levels[level]
        beam, child, filled = packed_children(here.first, self.slots(level, nodes.shape[1]), len(here), nodes, alive)
        return Children(beam, here.ids[child], child, filled)

    def open_among(self, level: int, nodes: Tensor, candidates: Tensor) -> Tensor:
        """Which of the candidates, bool like nodes int64 (...) of `level`, lead to an item that may be recommended."""
        return candidates if self.open is None else candidates & self.open.nodes[level][nodes]

    def find(self, ids: Tensor) -> Tensor:
        """Item index of each triple. ids: int64 (..., 3) -> int64 (...), -1 where there is no such item."""
        return self.path(ids)[-1]

    def path(self, ids: Tensor) -> list[Tensor]:
        """The nodes on the path of each triple int64 (..., 3): int64 (...) per level, -1 from a missing one on."""
        node = torch.zeros(ids.shape[:-1], dtype=torch.int64, device=ids.device)
        exists = torch.ones_like(node, dtype=torch.bool)
        nodes = []
        for level, here in enumerate(self.levels):
            level_ids = ids[..., level]
            key = (node * here.radix + level_ids).contiguous()
            node = torch.searchsorted(here.keys, key).clamp_(max=len(here) - 1)
            exists = exists & (here.keys[node] == key) & (level_ids >= 0) & (level_ids < here.radix)
            nodes.append(node.masked_fill(~exists, -1))
        return nodes

    def best_below(self, item_scores: Tensor) -> list[Tensor]:
        """The largest score of the items below each node: float (B, n) -> three (B, n_l), the last is `item_scores`."""
        best = [item_scores]
        for here in reversed(self.levels[1:]):
            above = len(here.first) - 1
            empty = item_scores.new_full((len(item_scores), above), float("-inf"))
            best.append(empty.scatter_reduce(1, here.parents.expand(len(item_scores), -1), best[-1], "amax"))
        return best[::-1]

    def limits(self, exclude: Tensor | None, only: OnlyItems | None) -> list[NodeLimits]:
        """Which nodes of each level may be chosen: those that lead to an item that is open, not among the user's
        `exclude`, int64 (B, X, 3), and among the user's `only`. Unknown triples are ignored.

        Prefixes without such an item are closed too, so that no beam is wasted where nothing is left to recommend.
        """
        closed = [None] * LEVELS if exclude is None else self._closed(exclude)
        opened = [None] * LEVELS if only is None else self._opened(only.ids, closed[-1])
        everything = None if only is None else ~only.applies.unsqueeze(1)
        open_nodes = [None] * LEVELS if self.open is None else self.open.nodes
        return [NodeLimits(*level, everything) for level in zip(open_nodes, closed, opened, strict=True)]

    def _find_open(self, ids: Tensor) -> Tensor:
        """Item index of each triple int64 (..., 3) that may be recommended, n for the others."""
        items = self.find(ids)
        if self.open is not None:
            items = items.masked_fill(~self.open.nodes[-1][items.clamp(min=0)], -1)
        return torch.where(items < 0, len(self), items)

    def _closed(self, exclude: Tensor) -> list[Tensor]:
        """Open nodes that lead to excluded items only: three int64 (B, X), each row ascending and padded with a number
        that is not a node."""
        closed = [distinct_nodes(self._find_open(exclude), len(self))]
        for level in range(LEVELS - 1, 0, -1):
            closed.append(self._closed_parents(level, closed[-1]))
        return list(reversed(closed))

    def _closed_parents(self, level: int, closed: Tensor) -> Tensor:
        """Nodes above `level` whose open children are all in `closed`. Both int64 (B, X), as `_closed` returns them."""
        here = self.levels[level]
        parents = self._parents(level, closed)
        closed_children = torch.searchsorted(parents, parents, right=True) - torch.searchsorted(parents, parents)
        above = len(here.first) - 1
        valid = parents.clamp(max=above - 1)
        children = here.first[valid + 1] - here.first[valid] if self.open is None else self.open.children[level][valid]
        return distinct_nodes(torch.where(closed_children == children, parents, above), above)

    def _opened(self, only: Tensor, closed: Tensor | None) -> list[Tensor]:
        """Open nodes that lead to an item of only int64 (B, Y, 3) that is not in `closed`, in the form of `_closed`."""
        items = distinct_nodes(self._find_open(only), len(self))
        if closed is not None:
            items = distinct_nodes(items.masked_fill(is_among(closed, items), len(self)), len(self))
        opened = [items]
        for level in range(LEVELS - 1, 0, -1):
            opened.append(distinct_nodes(self._parents(level, opened[-1]), len(self.levels[level].first) - 1))
        return list(reversed(opened))

    def _parents(self, level: int, nodes: Tensor) -> Tensor:
        """The node above each node int64 (B, X) of `level`; numbers that are not a node become one that is not."""
        here = self.levels[level]
        return torch.where(nodes < len(here), here.parents[nodes.clamp(max=len(here) - 1)], len(here.first) - 1)


def packed_children(
    first: Tensor, slots: int, count: int, nodes: Tensor, alive: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`beam`, `nodes` and `filled` of Children: first[p] .. first[p + 1] - 1 of `count` are those of node p.

    slots: at least as many as any W different nodes have, W being the number of `nodes` (B, W).
    """
    begin = first[nodes]
    counts = (first[nodes + 1] - begin) * alive
    ends = counts.cumsum(1)
    slot = torch.arange(slots, device=nodes.device)
    # A slot's beam is the number of beams that end before it. shape[0] instead of len(), which would fix the number of
    # rows of an exported program.
    ended = ends.new_zeros(nodes.shape[0], slots + 1).scatter_add(1, ends[:, :-1], torch.ones_like(ends[:, :-1]))
    beam = ended[:, :slots].cumsum(1)
    filled = slot < ends[:, -1:]
    child = (slot + (begin - ends + counts).gather(1, beam)).masked_fill_(~filled, count - 1)
    return beam, child, filled


def _level(ids: np.ndarray, parents: np.ndarray) -> TrieLevel:
    counts = np.bincount(parents)
    radix = int(ids.max()) + 1
    return TrieLevel(
        ids=torch.from_numpy(ids),
        parents=torch.from_numpy(parents),
        first=torch.from_numpy(np.concatenate([[0], counts.cumsum()])),
        keys=torch.from_numpy(parents * radix + ids),
        radix=radix,
        widest=np.sort(counts)[::-1].cumsum(),
    )
