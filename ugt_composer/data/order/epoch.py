"""The rows of an epoch that a data worker reads, in their order, produced while it reads."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ugt_composer.data.order.partition import Partition
from ugt_composer.data.order.shuffle import ShuffledNode, Spans, Start
from ugt_composer.data.order.units import Units

ROWS_AT_ONCE = 2048  # of a worker


class PlainNode:
    """The rows of a canonical node that is not shuffled."""

    def __init__(self, begin: int, units: Units):
        self._begin, self._units = begin, units

    def take(self, first: int, last: int) -> NDArray[np.int64]:
        return self._units.rows(self._begin + first, self._begin + last)


@dataclass(frozen=True)
class EpochOrder:
    """What the processes of a physical node need to know to produce the order of an epoch.

    Attributes:
        spans: None if the rows are not shuffled.
        starts: where this physical node's canonical nodes are begun, if they are shuffled.
    """

    partition: Partition
    units: Units
    spans: Spans | None = None
    starts: dict[int, Start] | None = None
    block_size: int = 0

    def rows(self, node: int, rank: int, worker: int) -> Iterator[NDArray[np.int64]]:
        """The rows of a worker of a rank of a physical node, in blocks that are not empty."""
        partition = self.partition
        nodes = {number: self._node(number) for number in partition.nodes_of(node)}
        step = -(-ROWS_AT_ONCE // partition.shape.batch)
        for first in range(0, partition.batches, step):
            batches = range(first, min(first + step, partition.batches))
            canonical, indices = partition.places_of(node, rank, worker, batches)
            rows = np.empty(len(indices), np.int64)
            for number, shuffled in nodes.items():
                here = np.flatnonzero(canonical == number)
                if len(here):
                    wanted = indices[here]
                    begin = int(wanted.min())
                    rows[here] = shuffled.take(begin, int(wanted.max()) + 1)[wanted - begin]
            if len(rows):
                yield rows

    def _node(self, number: int) -> ShuffledNode | PlainNode:
        if self.spans is None or self.starts is None:
            return PlainNode(int(self.partition.starts()[number]), self.units)
        return ShuffledNode(
            self.spans.begins[number],
            self.spans.sizes[number],
            self.block_size,
            self.starts[number],
            self.units.rows,
            self.partition.looks_back,
        )
