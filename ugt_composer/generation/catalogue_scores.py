"""The user-item score in a beam search over a catalogue that is too large for a score per user and item.

Beam search needs the best score below each node that it compares. For the first level all items are scored, block by
block, and only the best per node is kept; for the others only the items below the beams are.

Scores are weight · log of a distribution over the items, see `ItemScores`. Of a few items it depends on more than their
vectors: those of the history and neighbours of these. They are the `Exceptions`; the logarithm of any other probability
is its logit minus a number of the user's own.

Shapes: B users, n items, n_l nodes at level l, W beams, R slots, E exceptions of a user.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ugt_composer.catalogue.open_nodes import NodeLimits, distinct_nodes
from ugt_composer.catalogue.trie import Children, ItemTrie, packed_children
from ugt_composer.generation.catalogue_vectors import CatalogueVectors
from ugt_composer.generation.item_scores import ItemScores, comparable

BLOCK_BYTES = {"cpu": 2**20, "cuda": 64 * 2**20}  # of a block of scores, which fit a CPU's caches
SLOT_BYTES = 64  # of an item below a beam: about eight 64-bit numbers at once


class Exceptions(NamedTuple):
    """
    Attributes:
        items: int64 (B, E), ascending and different in each row, and padded with n.
        counted: float32 (B, E) their probabilities as neighbours.
        biases: float32 (B, E) their biases as items of the history.
    """

    items: Tensor
    counted: Tensor
    biases: Tensor

    def find(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Where each of items (B, R) is in `items`, and whether it is there."""
        at = torch.searchsorted(self.items, items).clamp_(max=self.items.shape[1] - 1)
        return at, self.items.gather(1, at) == items


class CatalogueScores:
    """The scores of B users.

    Args:
        scores: with `CatalogueVectors`.
        rows: the B users among its users.
        trie: whose items these are.
        limits: which nodes of each level may be chosen.
        memory_bound: bytes of the items below the beams that are scored at once.
    """

    def __init__(
        self, scores: ItemScores, rows: slice, trie: ItemTrie, limits: list[NodeLimits], memory_bound: int
    ) -> None:
        vectors = scores.comparable_items
        assert isinstance(vectors, CatalogueVectors)
        self.vectors, self.trie, self.limits, self.memory_bound = vectors, trie, limits, memory_bound
        self.weight = scores.weight
        self.products = self.vectors.products(comparable(scores.users[rows], scores.similarity) / scores.temperature)
        self.exceptions = _exceptions(scores, rows, len(trie))
        # Of the items without an exception; 1 - the weight of the neighbours' probabilities.
        self.rest = 0.0 if scores.neighbours is None else math.log1p(-scores.neighbours.weight)
        self.best, rest_sum = self._best_of_first_level()
        self.log_sum = rest_sum
        self.exception_scores: Tensor | None = None
        if self.exceptions is not None:
            self._add_exceptions(scores, rest_sum)
        self.best = self.weight * (self.best - self._constant)
        if self.exceptions is not None:
            self._add_best_exceptions()

    def __call__(self, level: int, nodes: Tensor, alive: Tensor, children: Children) -> Tensor:
        """The best score of an item below each child: float32 (B, R), -inf where none may be chosen.

        nodes, alive: (B, W), the beams whose children at `level` these are.
        """
        if level == 0:
            return self.best.gather(1, children.nodes)
        if level == len(self.trie.levels) - 1:
            return self._of_items(children.nodes, slice(None))
        slots = self.trie.slots_of_items(nodes.shape[1])
        size = max(1, self.memory_bound // (SLOT_BYTES * slots))
        parts = []
        for start in range(0, len(nodes), size):
            rows = slice(start, start + size)
            parts.append(self._best_below(nodes[rows], alive[rows], children.nodes[rows], rows))
        return torch.cat(parts)

    def _best_below(self, nodes: Tensor, alive: Tensor, children: Tensor, rows: slice) -> Tensor:
        first, slots = self.trie.first_items, self.trie.slots_of_items(nodes.shape[1])
        _, items, filled = packed_children(first, slots, len(self.trie), nodes, alive)
        scores = self._of_items(items, rows)
        scores = scores.masked_fill(~self.limits[-1].of(rows).allows(items, filled), float("-inf"))
        slot = torch.searchsorted(children, self.trie.levels[-1].parents[items]).clamp_(max=children.shape[1] - 1)
        best = scores.new_full(children.shape, float("-inf"))
        return best.scatter_reduce(1, slot, scores, "amax")

    def _of_items(self, items: Tensor, rows: slice) -> Tensor:
        """The scores of items int64 (b, R) for a slice of the users."""
        products = tuple(table[rows] for table in self.products)
        scores = self.weight * (self.vectors.of_items(products, items) - self._constant[rows])
        if self.exceptions is None or self.exception_scores is None:
            return scores
        at, is_exception = Exceptions(*(part[rows] for part in self.exceptions)).find(items)
        return torch.where(is_exception, self.exception_scores[rows].gather(1, at), scores)

    @property
    def _constant(self) -> Tensor:
        """(B, 1), what is subtracted from the logit of an item without an exception."""
        return self.log_sum[:, None] - self.rest

    def _best_of_first_level(self) -> tuple[Tensor, Tensor]:
        """Of the items without an exception: the largest logit below each node of the first level that may be chosen,
        (B, n_0), and the logarithm of the sum of all exponentials, (B,)."""
        users, count = len(self.products[0]), len(self.trie)
        best = self.products[0].new_full((users, len(self.trie.levels[0])), float("-inf"))
        log_sum = best.new_full((users,), float("-inf"))
        size = max(1, BLOCK_BYTES[best.device.type] // (4 * max(1, users)))
        for first in range(0, count, size):
            last = min(first + size, count)
            logits = self.vectors.of_block(self.products, first, last)
            if self.exceptions is not None:
                logits = NodeLimits(closed=self.exceptions.items).masked(logits, first)
            log_sum = torch.logaddexp(log_sum, logits.logsumexp(dim=1))
            nodes = self.trie.first_level_nodes(first, last).expand(users, -1)
            best.scatter_reduce_(1, nodes, self.limits[-1].masked(logits, first), "amax")
        return best, log_sum

    def _add_exceptions(self, scores: ItemScores, rest_sum: Tensor) -> None:
        """Sets `log_sum` over all items, and the scores of the exceptions."""
        assert self.exceptions is not None
        items = self.exceptions.items
        missing = items == len(self.trie)
        logits = self.vectors.of_items(self.products, items.clamp(max=len(self.trie) - 1))
        logits = logits.masked_fill(missing, float("-inf"))
        log_sum = torch.logaddexp(rest_sum, logits.logsumexp(dim=1))
        log_probs = logits - log_sum[:, None]
        if scores.neighbours is not None:
            counted = (self.exceptions.counted * scores.neighbours.weight).log()
            log_probs = torch.logaddexp(log_probs + self.rest, counted)
        log_probs = log_probs + self.exceptions.biases
        if scores.repeats is not None:
            # The sum of all probabilities with their biases, by which they are divided.
            of_rest = rest_sum - log_sum + self.rest
            total = torch.logaddexp(of_rest, log_probs.logsumexp(dim=1))
            log_probs, log_sum = log_probs - total[:, None], log_sum + total
        self.log_sum, self.exception_scores = log_sum, self.weight * log_probs

    def _add_best_exceptions(self) -> None:
        assert self.exceptions is not None
        assert self.exception_scores is not None
        items, count = self.exceptions.items, len(self.trie)
        scores = self.exception_scores.masked_fill(
            ~self.limits[-1].allows(items.clamp(max=count - 1), items < count), float("-inf")
        )
        nodes = self.trie.levels[1].parents[self.trie.levels[2].parents[items.clamp(max=count - 1)]]
        self.best = self.best.scatter_reduce(1, nodes, scores, "amax")


def _exceptions(scores: ItemScores, rows: slice, count: int) -> Exceptions | None:
    """Of a slice of the users; None if there are none."""
    found = []
    if scores.neighbours is not None:
        neighbours, probabilities = scores.neighbours.pairs(rows)
        found.append(neighbours)
    if scores.repeats is not None:
        found.append(scores.repeats.items[rows])
    if not found:
        return None
    items = distinct_nodes(torch.cat(found, dim=1), count)
    counted = torch.zeros(items.shape, device=items.device)
    biases = torch.zeros_like(counted)
    if scores.neighbours is not None:
        at = torch.searchsorted(items, neighbours)
        counted = counted.scatter_add(1, at, probabilities.masked_fill(neighbours == count, 0.0))
    if scores.repeats is not None:
        seen = scores.repeats.items[rows]
        values = scores.repeats.biases[rows].float().expand(-1, seen.shape[1]).masked_fill(seen == count, 0.0)
        biases = biases.scatter_add(1, torch.searchsorted(items, seen), values)
    return Exceptions(items, counted, biases)
