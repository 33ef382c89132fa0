"""Single values of a sorted column that is spread over partitions, without sorting it: quantiles and medians."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ugt_composer.importing.partitions import Partitions

CELLS = 1 << 16  # of a histogram
MOST_VALUES = 1 << 20  # that are brought together and sorted

Values = Callable[[Any], np.ndarray]  # partition → numbers (n,), int64 or float64, without NaN; importable


def count_values(partitions: Partitions[Any], values: Values) -> int:
    return partitions.sum(_count, values)


def quantile_rank(count: int, fraction: float) -> int:
    """The place of a quantile among sorted values, from 0, as numpy's method "higher" has it."""
    return math.ceil((count - 1) * fraction)


def nth_smallest(partitions: Partitions[Any], values: Values, ranks: Sequence[int]) -> list[Any]:
    """The values at these places, from 0, if all were sorted; as Python numbers."""
    ends = [pair for pair in partitions.map(_ends, values) if pair is not None]
    low, high = min(first for first, _ in ends), max(last for _, last in ends)
    count = count_values(partitions, values)
    return [_nth(partitions, values, rank, low, high, count) for rank in ranks]


def _nth(partitions: Partitions[Any], values: Values, rank: int, low: Any, high: Any, count: int) -> Any:
    while low < high and count > MOST_VALUES:
        edges = _edges(low, high)
        cells = partitions.sum(_histogram, values, low, high, edges)
        before = np.concatenate([[0], np.cumsum(cells)])
        cell = int(np.searchsorted(before, rank, side="right")) - 1
        rank, count = rank - int(before[cell]), int(cells[cell])
        ends = [pair for pair in partitions.map(_ends_of_cell, values, low, high, edges, cell) if pair is not None]
        low, high = min(first for first, _ in ends), max(last for _, last in ends)
    if low == high:
        return low
    return np.partition(np.concatenate(partitions.map(_between, values, low, high)), rank)[rank].item()


def _edges(low: Any, high: Any) -> np.ndarray:
    """Where cells begin. Values from the last one on, which is no larger than `high`, have a cell too."""
    if isinstance(low, int):
        return low + ((high - low) // CELLS + 1) * np.arange(CELLS)
    return np.linspace(low, high, CELLS + 1)


def _count(partition: Any, values: Values) -> int:
    return len(values(partition))


def _ends(partition: Any, values: Values) -> tuple[Any, Any] | None:
    found = values(partition)
    return (found.min().item(), found.max().item()) if len(found) else None


def _between(partition: Any, values: Values, low: Any, high: Any) -> np.ndarray:
    found = values(partition)
    return found[(found >= low) & (found <= high)]


def _cells(partition: Any, values: Values, low: Any, high: Any, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = _between(partition, values, low, high)
    return found, np.searchsorted(edges, found, side="right") - 1


def _histogram(partition: Any, values: Values, low: Any, high: Any, edges: np.ndarray) -> np.ndarray:
    return np.bincount(_cells(partition, values, low, high, edges)[1], minlength=len(edges))


def _ends_of_cell(
    partition: Any, values: Values, low: Any, high: Any, edges: np.ndarray, cell: int
) -> tuple[Any, Any] | None:
    found, cells = _cells(partition, values, low, high, edges)
    found = found[cells == cell]
    return (found.min().item(), found.max().item()) if len(found) else None
