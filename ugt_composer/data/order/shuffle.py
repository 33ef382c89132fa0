"""Streaming's `py1e` shuffle in windows: the same order, without an array of all rows.

`py1e` orders the shards by chance, divides them over the canonical nodes and, within each of these, shuffles the rows
of each span (a shard, or the part of one that a canonical node got) and then moves each row by a random distance of at
most half a block. So a window of one block, about, contains all rows that may come next.

The random numbers come from one generator, for each canonical node in turn: all shuffles, then for each span the size
of its block and the distances of its rows. Two generators per canonical node are therefore enough to read it from
anywhere, one in each part. To find their states, all earlier shuffles have to be skipped, which takes a few
nanoseconds a row (see `draws`). `Marks` are states in between; they are saved with a checkpoint, so that a resumed run
only skips the shuffles from the last mark on.

NumPy's default sort leaves open which of two rows comes first that are moved to exactly the same place, and its choice
depends on the CPU. Here it is the one that was first before. Among 10⁹ rows there are about twenty such pairs.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from streaming.base.shuffle.py1s import divide_spans

from ugt_composer.data.order.draws import LARGEST, State, generator_at, skip_numbers, skip_shuffle, state_of

MARKS = 64  # over all canonical nodes; at least one for each
ROWS_AT_ONCE = 1 << 16

Rows = Callable[[int, int], NDArray[np.int64]]


@dataclass(frozen=True)
class Spans:
    """The spans of each canonical node, in this epoch's order.

    Attributes:
        begins, sizes: per canonical node, the first place of each span, and its number of places.
        state: of the generator before the first shuffle.
    """

    begins: list[NDArray[np.int64]]
    sizes: list[NDArray[np.int64]]
    state: State

    def mark_counts(self) -> list[int]:
        """How many marks each canonical node has."""
        return [len(marked(sizes, len(self.sizes))) for sizes in self.sizes]

    def fingerprint(self) -> int:
        """Differs for other spans, whose marks are others too."""
        return zlib.crc32(np.concatenate([*self.begins, *self.sizes]).tobytes())


def shuffled_spans(unit_sizes: NDArray[np.int64], canonical: int, seed: int, epoch: int) -> Spans:
    """The spans as `get_shuffle_py1e` orders and divides them."""
    ends = np.cumsum(unit_sizes)
    spans = list(zip((ends - unit_sizes).tolist(), ends.tolist(), strict=True))
    np.random.default_rng(seed).shuffle(spans)
    spans, groups = divide_spans(spans, int(ends[-1]), canonical)
    generator = np.random.default_rng(seed + epoch)
    begins, sizes = [], []
    for first, last in groups:
        part = spans[first:last]
        generator.shuffle(part)
        array = np.array(part, np.int64).reshape(-1, 2)
        begins.append(array[:, 0].copy())
        sizes.append(array[:, 1] - array[:, 0])
    return Spans(begins, sizes, state_of(generator))


def block_range(block_size: int) -> tuple[int, int]:
    """The smallest size of a random block, and the largest plus one."""
    return int(0.75 * block_size), int(1.25 * block_size)


def can_order(unit_sizes: NDArray[np.int64], block_size: int) -> bool:
    """Whether all numbers are drawn from half a word."""
    low, high = block_range(block_size)
    return 0 < high - low < LARGEST and int(unit_sizes.max(initial=0)) <= LARGEST


# The states of the generator within and after the shuffles of each canonical node.
Marks = list[list[State]]


def marked(sizes: NDArray[np.int64], canonical: int) -> list[int]:
    """The spans of a canonical node before which there is a mark; the last mark is after all spans."""
    ends = np.cumsum(sizes)
    parts = max(1, MARKS // canonical)
    inner = np.searchsorted(ends, np.arange(1, parts) * ends[-1] // parts) + 1
    return [*np.unique(inner[inner < len(sizes)]).tolist(), len(sizes)]


def make_marks(spans: Spans, block_size: int) -> Marks:
    """Skips all shuffles of an epoch."""
    marks, state = [], spans.state
    for sizes in spans.sizes:
        at, of_node = 0, []
        for stop in marked(sizes, len(spans.sizes)):
            state = skip_shuffles(state, sizes[at:stop])
            of_node.append(state)
            at = stop
        marks.append(of_node)
        state = skip_moves(state, sizes, block_size)
    return marks


def skip_shuffles(state: State, sizes: NDArray[np.int64]) -> State:
    generator = generator_at(state)
    for size in sizes.tolist():
        skip_shuffle(generator, size)
    return state_of(generator)


def skip_moves(state: State, sizes: NDArray[np.int64], block_size: int) -> State:
    low, high = block_range(block_size)
    return skip_numbers(state, high - low, sizes)


@dataclass(frozen=True)
class Start:
    """Where to begin to read a canonical node.

    Attributes:
        span: the first one that is needed.
        shuffles, moves: the states before its shuffle and before the size of its block.
    """

    span: int
    shuffles: State
    moves: State


def find_starts(spans: Spans, marks: Marks, block_size: int, nodes: Sequence[int], index: int) -> dict[int, Start]:
    """Where to begin to read the canonical nodes `nodes` from their place `index` on."""
    starts, state = {}, spans.state
    for node, sizes in enumerate(spans.sizes):
        moves = marks[node][-1]
        if node in nodes:
            span = Reach(sizes, block_size).span_before(min(index, int(sizes.sum()) - 1))
            at, before = 0, state
            for stop, mark in zip(marked(sizes, len(spans.sizes)), marks[node], strict=True):
                if stop <= span:
                    at, before = stop, mark
            moves_before = skip_moves(moves, sizes[:span], block_size)
            starts[node] = Start(span, skip_shuffles(before, sizes[at:span]), moves_before)
            state = skip_moves(moves_before, sizes[span:], block_size)
        else:
            state = skip_moves(moves, sizes, block_size)
    return starts


class Reach:
    """How far the rows of each span of a canonical node may be moved, for any random blocks.

    Attributes:
        offsets: (spans + 1,) rows before each span.
        lowest: (spans + 1,) a bound: rows of this and all later spans do not come before it.
    """

    def __init__(self, sizes: NDArray[np.int64], block_size: int):
        self.offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        begins, ends, total = self.offsets[:-1], self.offsets[1:], int(self.offsets[-1])
        furthest = np.maximum((block_range(block_size)[1] - 1 - sizes) / 2, 0.0)
        lowest = np.append(begins - np.minimum(furthest, begins), np.inf)
        self.lowest = np.minimum.accumulate(lowest[::-1])[::-1]
        highest = ends - 1 + np.minimum(furthest, total - ends)
        self._highest = np.concatenate([[-np.inf], np.maximum.accumulate(highest)[:-1]])  # of the spans before

    def span_before(self, index: int) -> int:
        """The last span such that the row that comes at `index`, and all after it, are behind all rows of the spans
        before it."""
        # No row of an earlier span, and none up to its end, is among or behind those from `safe` on.
        safe = self.offsets[np.searchsorted(self.lowest, self._highest, side="right")]
        return int(np.searchsorted(safe, index, side="right")) - 1


class ShuffledNode:
    """The rows of a canonical node in their order, from `start` on.

    Args:
        begins, sizes: its spans.
        rows: the rows at some places.
        keeps: how many rows before the last ones that were asked for may be asked for again.
    """

    def __init__(
        self,
        begins: NDArray[np.int64],
        sizes: NDArray[np.int64],
        block_size: int,
        start: Start,
        rows: Rows,
        keeps: int,
    ):
        self._begins, self._sizes, self._rows, self._keeps = begins, sizes, rows, keeps
        self._block_range, self._reach = block_range(block_size), Reach(sizes, block_size)
        self._span = start.span
        self._shuffles, self._moves = generator_at(start.shuffles), generator_at(start.moves)
        self._begin = int(self._reach.offsets[start.span])  # index of the first row of `_ready`
        self._ready = np.empty(0, np.int64)
        self._positions, self._moved = np.empty(0), np.empty(0, np.int64)  # rows that others may still come before

    def take(self, first: int, last: int) -> NDArray[np.int64]:
        """The rows that come at the indices first … last - 1."""
        blocks, end = [self._ready], self._begin + len(self._ready)
        while end < last:
            blocks.append(self._next())
            end += len(blocks[-1])
        ready = np.concatenate(blocks)
        taken = ready[first - self._begin : last - self._begin]
        dropped = max(first - self._keeps - self._begin, 0)
        self._ready, self._begin = ready[dropped:].copy(), self._begin + dropped
        return taken

    def _next(self) -> NDArray[np.int64]:
        """The next rows that no other row can come before; perhaps none."""
        positions, moved, loaded = [self._positions], [self._moved], 0
        while self._span < len(self._sizes) and loaded < ROWS_AT_ONCE:
            more = self._shuffled_span()
            moved.append(more)
            positions.append(self._new_positions(len(more)))
            loaded += len(more)
            self._span += 1
        at, rows = np.concatenate(positions), np.concatenate(moved)
        is_ready = at < self._reach.lowest[self._span]
        self._positions, self._moved = at[~is_ready], rows[~is_ready]
        return rows[is_ready][stable_order(at[is_ready])]

    def _shuffled_span(self) -> NDArray[np.int64]:
        begin = int(self._begins[self._span])
        rows = self._rows(begin, begin + int(self._sizes[self._span]))
        self._shuffles.shuffle(rows)
        return rows

    def _new_positions(self, size: int) -> NDArray[np.float64]:
        """Where the rows of the current span are moved to."""
        offset, total = int(self._reach.offsets[self._span]), int(self._reach.offsets[-1])
        furthest = max((int(self._moves.integers(*self._block_range)) - size) / 2, 0)
        low, high = max(-furthest, -offset), min(furthest, total - offset - size)
        return np.arange(offset, offset + size).astype(np.float64) + self._moves.uniform(low, high, size)


def stable_order(positions: NDArray[np.float64]) -> NDArray[np.intp]:
    """The indices that sort positions; equal ones stay in their order. NumPy's default sort is five times as fast as
    its stable one, which is only needed if some are equal."""
    order = np.argsort(positions)
    ordered = positions[order]
    return np.argsort(positions, kind="stable") if (ordered[1:] == ordered[:-1]).any() else order
