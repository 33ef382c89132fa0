"""Which nodes of a trie may be chosen: by everybody, and by each user of a batch.

Shapes: n items, n_l nodes at level l, m_l nodes at the level above, B users, R slots, X excluded items, Y items of a
user's own list. Sets of nodes are int64 (B, X): ascending in each row, and padded with a number that is not a node.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class OnlyItems(NamedTuple):
    """The only items that may be recommended to some users.

    Attributes:
        ids: int64 (B, Y, 3), padded with triples that are not items.
        applies: bool (B,) False for users who have no such list.
    """

    ids: Tensor
    applies: Tensor

    def of(self, rows: slice) -> "OnlyItems":
        return OnlyItems(self.ids[rows], self.applies[rows])


@dataclass(frozen=True, eq=False)
class OpenNodes:
    """What may be recommended to everybody: the items that are not withheld, and the nodes with such an item below.

    Attributes:
        nodes: bool (n_l,) for each level.
        children: int64 (m_l,) for each level: how many children of each node above are open.
        members: int64 (n,) how many of the items that share each triple are not withheld.
        items: bool (sum of the trie's members,) which items are not withheld, by triple and number.
        numbers: int64 (sum of `members`,) the number of each such item among all that share its triple.
    """

    nodes: tuple[Tensor, ...]
    children: tuple[Tensor, ...]
    members: Tensor
    items: Tensor
    numbers: Tensor

    @classmethod
    def of(cls, items: Tensor, members: Tensor, parents: Sequence[tuple[Tensor, int]]) -> "OpenNodes":
        """
        Args:
            items: see there.
            members: int64 (n,) how many items share each triple.
            parents: for each level, the node above each of its nodes, and the number of nodes above.
        """
        triple = torch.arange(len(members)).repeat_interleave(members)
        first = members.cumsum(0) - members
        open_members = torch.zeros_like(members).index_add_(0, triple, items.long())
        nodes, children = [open_members > 0], []
        for above, count in reversed(parents):
            children.append(torch.zeros(count, dtype=torch.int64).index_add_(0, above, nodes[-1].long()))
            nodes.append(children[-1] > 0)
        numbers = (torch.arange(len(items)) - first[triple])[items]
        return cls(tuple(nodes[-2::-1]), tuple(children[::-1]), open_members, items, numbers)

    def to(self, device: torch.device | str) -> "OpenNodes":
        nodes, children = (tuple(level.to(device) for level in levels) for levels in (self.nodes, self.children))
        return OpenNodes(nodes, children, self.members.to(device), self.items.to(device), self.numbers.to(device))


class NodeLimits(NamedTuple):
    """Which nodes of one level may be chosen.

    Attributes:
        open: bool (n_l,) nodes that are open to everybody; None: all.
        closed: the nodes that each user must not get; None: none.
        opened: the only nodes that each user may get; None: there are no such lists.
        everything: bool (B, 1) users to whom `opened` does not apply.
    """

    open: Tensor | None = None
    closed: Tensor | None = None
    opened: Tensor | None = None
    everything: Tensor | None = None

    def allows(self, nodes: Tensor, candidates: Tensor) -> Tensor:
        """Which of the candidates bool (B, R) may be chosen; they are for nodes int64 (B, R), ascending."""
        if self.open is not None:
            candidates = candidates & self.open[nodes]
        if self.closed is not None:
            candidates = candidates & ~is_among(self.closed, nodes)
        if self.opened is not None and self.everything is not None:
            candidates = candidates & (is_among(self.opened, nodes) | self.everything)
        return candidates

    def of(self, rows: slice) -> "NodeLimits":
        """Those of a slice of the users."""
        own = (None if part is None else part[rows] for part in (self.closed, self.opened, self.everything))
        return NodeLimits(self.open, *own)

    def masked(self, scores: Tensor, first: int = 0) -> Tensor:
        """Scores (B, m) of m consecutive nodes, all or from `first` on, with -inf for those that may not be chosen."""
        count = scores.shape[1]
        if self.open is not None:
            scores = scores.masked_fill(~self.open[first : first + count], float("-inf"))
        if self.closed is not None:
            padded = torch.nn.functional.pad(scores, (0, 1))
            scores = padded.scatter(1, _places(self.closed, first, count), float("-inf"))[:, :-1]
        if self.opened is not None and self.everything is not None:
            is_opened = torch.zeros(len(scores), count + 1, dtype=torch.bool, device=scores.device)
            is_opened = is_opened.scatter(1, _places(self.opened, first, count), True)
            scores = scores.masked_fill(~(is_opened[:, :-1] | self.everything), float("-inf"))
        return scores


def _places(nodes: Tensor, first: int, count: int) -> Tensor:
    """The places of nodes among `count` nodes from `first` on; `count` for others."""
    if first == 0:
        return nodes.clamp(max=count)
    places = nodes - first
    return torch.where(places < 0, count, places).clamp_(max=count)


def distinct_nodes(nodes: Tensor, none: int) -> Tensor:
    """The set of nodes int64 (B, X) in any order, padded with `none`, the largest value."""
    nodes = nodes.sort(1).values
    return nodes.masked_fill(~is_first(nodes), none).sort(1).values


def is_first(nodes: Tensor) -> Tensor:
    """Which of the ascending nodes (B, X) differ from the one before: bool (B, X)."""
    # Not by a comparison of slices, which would exclude widths of 1 and 2 from an exported program.
    return torch.searchsorted(nodes, nodes) == torch.arange(nodes.shape[1], device=nodes.device)


def is_among(members: Tensor, nodes: Tensor) -> Tensor:
    """Whether each of the ascending nodes (B, R) is one of the set of nodes `members`: bool (B, R)."""
    slots = nodes.shape[1]
    if not slots:
        return torch.zeros_like(nodes, dtype=torch.bool)
    at = torch.searchsorted(nodes, members).clamp_(max=slots - 1)
    at = torch.where(nodes.gather(1, at) == members, at, slots)
    return torch.zeros(len(nodes), slots + 1, dtype=torch.bool, device=nodes.device).scatter(1, at, True)[:, :-1]
