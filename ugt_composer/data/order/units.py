"""The rows of an epoch before they are shuffled: which rows of which shard, with repeats and samples.

Streaming numbers the rows of an epoch; here these numbers are places. A unit is a run of places that are rows of one
shard: all its rows or, where a stream is sampled or repeated by a fraction, some of them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ugt_composer.data.order.draws import State, generator_at, state_of

PICKS_AT_ONCE = 1 << 20


@dataclass
class Units:
    """
    Attributes:
        bounds: (units + 1,) the first place of each unit, and the number of places.
        first_rows: (units,) the first row of the unit's shard, counted over all shards.
        shard_rows: (units,) rows of the unit's shard.
        states: of the generator that draws the rows of a unit that does not have all of its shard, by unit.
    """

    bounds: NDArray[np.int64]
    first_rows: NDArray[np.int64]
    shard_rows: NDArray[np.int64]
    states: dict[int, State]
    _drawn: tuple[int, NDArray[np.int64]] = field(default=(-1, np.empty(0, np.int64)), repr=False)

    def __len__(self) -> int:
        return len(self.first_rows)

    @property
    def sizes(self) -> NDArray[np.int64]:
        return np.diff(self.bounds)

    def rows(self, begin: int, end: int) -> NDArray[np.int64]:
        """The rows at the places begin … end - 1."""
        first, last = np.searchsorted(self.bounds, [begin, end - 1], side="right") - 1
        pieces = []
        for unit in range(int(first), int(last) + 1):
            start = int(self.bounds[unit])
            pieces.append(self._rows_of(unit, max(begin - start, 0), min(end, int(self.bounds[unit + 1])) - start))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _rows_of(self, unit: int, begin: int, end: int) -> NDArray[np.int64]:
        if unit not in self.states:
            return int(self.first_rows[unit]) + np.arange(begin, end)
        if self._drawn[0] != unit:
            size = int(self.bounds[unit + 1] - self.bounds[unit])
            self._drawn = (
                unit,
                self.first_rows[unit] + _draw(generator_at(self.states[unit]), self.shard_rows[unit], size),
            )
        return self._drawn[1][begin:end].copy()


def _draw(generator: np.random.Generator, rows: int, size: int) -> NDArray[np.int64]:
    drawn = generator.choice(rows, size, False)
    drawn.sort()
    return drawn


def sampled_units(
    shard_rows: NDArray[np.int64], streams: Iterable[slice], choose: Sequence[int], seed: int, draw_seed: int
) -> Units:
    """The units of an epoch, as Streaming's `resample_streams` and `get_sampling` choose them.

    Args:
        shard_rows: rows of each shard, of all streams.
        streams: the shards of each stream.
        choose: rows of each stream in the epoch.
        seed: for how many rows of each shard are chosen.
        draw_seed: for which ones.
    """
    generator = np.random.default_rng(draw_seed)
    first_rows = np.cumsum(shard_rows) - shard_rows
    sizes: list[NDArray[np.int64]] = []
    shards: list[NDArray[np.int64]] = []
    states: dict[int, State] = {}
    units = 0
    for shards_of, chosen in zip(streams, choose, strict=True):
        rows = shard_rows[shards_of]
        counts = rows_per_shard(rows, int(chosen), lambda: np.random.default_rng(seed))
        whole, rest = np.divmod(counts, np.maximum(rows, 1))
        # Of each shard: `whole` units of all rows, then one of the rest.
        owners = np.repeat(np.arange(len(rows)), whole + (rest > 0))
        unit_sizes = rows[owners]
        is_rest = np.append(owners[1:] != owners[:-1], True) & (rest[owners] > 0) if len(owners) else owners > 0
        unit_sizes[is_rest] = rest[owners[is_rest]]
        for unit in np.flatnonzero(is_rest).tolist():
            states[units + unit] = state_of(generator)
            _draw(generator, rows[owners[unit]], int(unit_sizes[unit]))
        sizes.append(unit_sizes)
        shards.append(owners + shards_of.start)
        units += len(owners)
    owners = np.concatenate(shards)
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(sizes))])
    return Units(bounds, first_rows[owners], shard_rows[owners], states)


def rows_per_shard(
    rows: NDArray[np.int64], choose: int, generator: Callable[[], np.random.Generator]
) -> NDArray[np.int64]:
    """How many rows of each shard of a stream are chosen.

    If some rows are chosen more often than others, they are the first of a permutation of all rows of the stream, as in
    Streaming. It takes 4 bytes a row.
    """
    total = int(rows.sum())
    times, rest = divmod(choose, total)
    counts = rows * times
    if rest:
        permutation = np.arange(total, dtype=np.uint32 if total <= 1 << 32 else np.int64)
        generator().shuffle(permutation)
        ends = np.cumsum(rows)
        for begin in range(0, rest, PICKS_AT_ONCE):
            picks = permutation[begin : min(begin + PICKS_AT_ONCE, rest)]
            counts += np.bincount(np.searchsorted(ends, picks, side="right"), minlength=len(rows))
    return counts
