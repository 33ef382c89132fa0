"""Which places of an epoch a data worker reads, as Streaming's partition algorithms say, without an array of all.

Streaming deals the places of the canonical nodes out in turns: the first of each node, the second of each, …; these
turns go round the physical nodes, those of a physical node round its ranks, and those of a rank, batch by batch, round
its workers. A canonical node with fewer places than others repeats one; nodes and ranks are padded with earlier places.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Shape:
    """Numbers of physical nodes, ranks per node, workers per rank and rows per batch of a rank."""

    nodes: int
    ranks: int
    workers: int
    batch: int


@dataclass(frozen=True)
class Partition:
    """
    Attributes:
        places: in the epoch.
        canonical: number of canonical nodes.
        shape: for which the places are read.
        initial: for which they are dealt out. It differs from `shape` if the run was started on a number of nodes, and
            is resumed on another one, that does not divide the canonical nodes.
        done: turns that were read before.
    """

    places: int
    canonical: int
    shape: Shape
    initial: Shape
    done: int

    @property
    def _longest(self) -> int:
        """Places of the largest canonical node."""
        return -(-self.places // self.canonical)

    @property
    def _ratio(self) -> int:
        """Physical nodes that share a canonical node, if there are more of them."""
        return self.initial.nodes // self.canonical if self.canonical < self.initial.nodes else 1

    @property
    def _padding(self) -> int:
        """Places that each canonical node repeats so that as many are left for each of its physical nodes."""
        return -self._longest % self._ratio

    @property
    def _turns(self) -> int:
        """Turns of a physical node."""
        return ((self._longest + self._padding) * self.canonical - self.done) // self.initial.nodes

    @property
    def _rows(self) -> int:
        """Turns of a rank."""
        return -(-self._turns // self.initial.ranks)

    @property
    def batches(self) -> int:
        """Batches of a worker; the last ones may be empty or not full."""
        return -(-self._rows // (self.initial.workers * self.initial.batch))

    @property
    def looks_back(self) -> int:
        """How far back in its canonical node a place may be before one that was read."""
        return 2 * self.initial.ranks * self._ratio + 2 * self._ratio + 2

    def is_regular(self) -> bool:
        """Whether `places_of` is right. Where there are so few places that most are repeated, it is not."""
        small, large = sorted((self.canonical, self.initial.nodes))
        enough = self.places > self.canonical or (self.places == self.canonical >= self.initial.nodes)
        return (
            large % small == 0 and enough and (self._padding == 0 or self._longest >= self._padding + self._ratio - 1)
        )

    def starts(self) -> NDArray[np.int64]:
        """The first place of each canonical node, and the number of places."""
        return np.arange(self.canonical + 1) * self.places // self.canonical

    def nodes_of(self, node: int) -> list[int]:
        """The canonical nodes that a physical node reads."""
        if self.shape != self.initial:
            return list(range(self.canonical))
        if self.canonical < self.initial.nodes:
            return [node % self.canonical]
        return list(range(node, self.canonical, self.initial.nodes))

    def first_index(self) -> int:
        """The first index in any canonical node that is still to be read."""
        return max(0, self.done // self.canonical - self.looks_back)

    def places_of(
        self, node: int, rank: int, worker: int, batches: range
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The places of some batches of a worker: canonical nodes, and indices of the places in these."""
        shape, initial = self.shape, self.initial
        within = (node * shape.ranks + rank) * shape.batch + np.arange(shape.batch)
        nodes, within = np.divmod(within, initial.ranks * initial.batch)
        ranks, within = np.divmod(within, initial.batch)
        numbers = np.arange(batches.start, batches.stop) * initial.workers + worker
        rows = numbers[:, None] * initial.batch + within  # of the rank
        turns, nodes = rows * initial.ranks + ranks, np.broadcast_to(nodes, rows.shape)
        exists = rows < self._rows
        turns, nodes = turns[exists], nodes[exists]
        is_padding, total = turns >= self._turns, self._turns
        if is_padding.any():
            number, missing = turns - total, -total % initial.ranks
            first = total - initial.ranks - missing + 1
            turns = np.where(is_padding, number % total if first < 0 else first + number, turns)
        indices, canonical = np.divmod(self.done + turns * initial.nodes + nodes, self.canonical)
        longest = self._longest
        is_padding = indices >= longest
        if is_padding.any():
            indices = np.where(is_padding, indices - self._padding - self._ratio + 1, indices)
        starts = self.starts()
        is_short = np.diff(starts) < longest
        return canonical, indices - (is_short[canonical] & (indices == longest - 1))


def partition(
    places: int, canonical: int, shape: Shape, done: int, initial_nodes: int | None, is_relaxed: bool
) -> Partition | None:
    """The partition of an epoch, resumed after `done` rows; None if Streaming's own code is needed."""
    small, large = sorted((canonical, shape.nodes))
    initial = shape
    if is_relaxed and initial_nodes is not None and large % small:
        batch, rest = divmod(shape.nodes * shape.batch, initial_nodes)
        if rest:
            return None
        initial = Shape(initial_nodes, shape.ranks, shape.workers, batch)
    found = Partition(places, canonical, shape, initial, done - done % initial.nodes)
    return found if found.is_regular() else None
