"""Single values of a sorted column that is spread over partitions, without sorting it: quantiles and medians."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ugt_composer.importing.partitions import Partitions

CELLS = 1 << 16  # of a histogram
MOST_VALUES = 1 << 20  # that are brought together and sorted

Values = Callable[[Any], np.ndarray]  # partition → numbers (n,), int64 or float64, without NaN; importable


def quantile_rank(count: int, fraction: float) -> int:
    """The place of a quantile among sorted values, from 0, as numpy's method "higher" has it."""
    return math.ceil((count - 1) * fraction)


def nth_smallest(partitions: Partitions[Any], values: Values, ranks: Callable[[int], Sequence[int]]) -> list[Any]:
    """The values at some places, from 0, if all were sorted; as Python numbers.

    Args:
        ranks: number of values, one at least → the places.
    """
    whole = _merged(partitions.map(_range, values))
    if whole.count <= MOST_VALUES:
        found = np.sort(np.concatenate(partitions.map(_between, values, whole.low, whole.high)))
        return [found[rank].item() for rank in ranks(whole.count)]
    return [_nth(partitions, values, rank, whole) for rank in ranks(whole.count)]


@dataclass(frozen=True)
class _Range:
    """So many values, from the smallest to the largest."""

    count: int
    low: Any
    high: Any


def _merged(ranges: Sequence[_Range]) -> _Range:
    known = [part for part in ranges if part.count]
    return _Range(sum(part.count for part in known), min(p.low for p in known), max(p.high for p in known))


def _nth(partitions: Partitions[Any], values: Values, rank: int, within: _Range) -> Any:
    while within.low < within.high and within.count > MOST_VALUES:
        parts = partitions.map(_cells, values, within.low, within.high, _edges(within.low, within.high))
        before = np.concatenate([[0], np.cumsum(np.sum([cells.count for cells in parts], axis=0))])
        cell = int(np.searchsorted(before, rank, side="right")) - 1
        rank -= int(before[cell])
        within = _merged([_Range(int(p.count[cell]), p.low[cell].item(), p.high[cell].item()) for p in parts])
    if within.low == within.high:
        return within.low
    found = np.concatenate(partitions.map(_between, values, within.low, within.high))
    return np.partition(found, rank)[rank].item()


def _edges(low: Any, high: Any) -> np.ndarray:
    """Where cells begin. Values from the last one on, which is no larger than `high`, have a cell too."""
    if isinstance(low, int):
        return low + ((high - low) // CELLS + 1) * np.arange(CELLS)
    return np.linspace(low, high, CELLS + 1)


def _range(partition: Any, values: Values) -> _Range:
    found = values(partition)
    return _Range(len(found), found.min().item(), found.max().item()) if len(found) else _Range(0, None, None)


def _between(partition: Any, values: Values, low: Any, high: Any) -> np.ndarray:
    found = values(partition)
    return found[(found >= low) & (found <= high)]


@dataclass(frozen=True)
class _Cells:
    """Of each cell, how many values it has, the smallest and the largest one."""

    count: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _cells(partition: Any, values: Values, low: Any, high: Any, edges: np.ndarray) -> _Cells:
    found = np.sort(_between(partition, values, low, high))
    start = np.append(np.searchsorted(found, edges), len(found))
    ends = np.append(found, found[-1:]) if len(found) else edges[:1]
    return _Cells(np.diff(start), ends[start[:-1]], ends[np.maximum(start[1:] - 1, 0)])
