"""Ranking metrics over lists of semantic IDs, as plain functions.

`predictions` holds one list of (l1, l2, l3) per row, best first; `ground_truth` one (l1, l2, l3) per row, or a list of
them. They may be tuples or lists. A repeated item of a list counts once, at its first place; a list may be shorter than
K. Every metric is the mean over the rows, unless stated otherwise. R is a row's set of relevant items, p_1, p_2, …
its distinct predictions, and rel_i is 1 if p_i is in R, else 0.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

from ugt_composer.data.history import SemanticId
from ugt_composer.vocabulary import LEVELS

Predictions = Sequence[Sequence[Sequence[int]]]
GroundTruth = Sequence[Sequence[int]] | Sequence[Sequence[Sequence[int]]]


class RankedRow(NamedTuple):
    """A checked row: its distinct predictions, best first, and its relevant items (at least one)."""

    predicted: tuple[SemanticId, ...]
    relevant: frozenset[SemanticId]


def recall_at_k(predictions: Predictions, ground_truth: GroundTruth, k: int = 10) -> float:
    """|{p_1 .. p_k} ∩ R| / |R|; equal to the hit rate if every row has one relevant item."""
    return mean_over_rows(read_rows(predictions, ground_truth), row_recall, k)


def ndcg_at_k(predictions: Predictions, ground_truth: GroundTruth, k: int = 10) -> float:
    """DCG / IDCG with binary gains: Σ_{i ≤ k} rel_i / log2(i + 1) over Σ_{i ≤ min(|R|, k)} 1 / log2(i + 1)."""
    return mean_over_rows(read_rows(predictions, ground_truth), row_ndcg, k)


def hit_rate(predictions: Predictions, ground_truth: GroundTruth, k: int = 10) -> float:
    """The fraction of rows with at least one relevant item among the first k."""
    return mean_over_rows(read_rows(predictions, ground_truth), row_hit, k)


def mrr(predictions: Predictions, ground_truth: GroundTruth) -> float:
    """1 / rank of the first relevant item in the complete list, 0 if it has none."""
    return mean_over_rows(read_rows(predictions, ground_truth), row_reciprocal_rank, 1)


def coverage(predictions: Predictions, catalogue: int | Collection[Sequence[int]], k: int = 10) -> float:
    """Number of distinct items in all rows' first k, divided by the catalogue's size.

    `catalogue` is the number of items, or the items; in the latter case recommended items outside it do not count.
    """
    size, counts = _exposures(_lists(predictions), catalogue, k)
    return len(counts) / size


def diversity(predictions: Predictions, k: int = 10) -> float:
    """Number of distinct l1 among the first k, divided by the number of these items; 0 for an empty list."""
    rows = [RankedRow(items, frozenset()) for items in _lists(predictions)]
    return mean_over_rows(rows, row_diversity, k)


def gini(predictions: Predictions, catalogue: int | Collection[Sequence[int]], k: int = 10) -> float:
    """How unevenly the rows' first k expose the catalogue: 0 if all items equally often, 1 - 1/n if only one item.

    Σ_j (2 j - n - 1) x_j / (n Σ x), where x_1 ≤ … ≤ x_n are the numbers of times that each of the n items is
    recommended, including 0; the result is 0 if nothing is recommended. `catalogue` as in `coverage`.
    """
    size, counts = _exposures(_lists(predictions), catalogue, k)
    return gini_of_counts(counts.values(), size)


def row_recall(row: RankedRow, k: int) -> float:
    return len(row.relevant.intersection(row.predicted[:k])) / len(row.relevant)


def row_ndcg(row: RankedRow, k: int) -> float:
    gained = sum(1 / math.log2(rank + 1) for rank in range(1, k + 1) if _is_hit(row, rank))
    return gained / sum(1 / math.log2(rank + 1) for rank in range(1, min(len(row.relevant), k) + 1))


def row_hit(row: RankedRow, k: int, levels: int = LEVELS) -> float:
    """1 if one of the first k agrees with a relevant item in the first `levels` levels, else 0."""
    prefixes = {item[:levels] for item in row.relevant}
    return float(any(item[:levels] in prefixes for item in row.predicted[:k]))


def row_reciprocal_rank(row: RankedRow, _k: int) -> float:
    return next((1 / rank for rank in range(1, len(row.predicted) + 1) if _is_hit(row, rank)), 0.0)


def row_diversity(row: RankedRow, k: int) -> float:
    items = row.predicted[:k]
    return len({item[0] for item in items}) / len(items) if items else 0.0


def mean_over_rows(rows: Sequence[RankedRow], value: Callable[[RankedRow, int], float], k: int) -> float:
    """The mean of value(row, k)."""
    check_k(k)
    if not rows:
        raise ValueError("there are no predictions to measure")
    return math.fsum(value(row, k) for row in rows) / len(rows)


def gini_of_counts(counts: Iterable[int], size: int) -> float:
    """`gini` of a catalogue of `size` items, given the exposure counts that are above 0."""
    ascending = sorted(counts)
    zeros = size - len(ascending)
    weighted = sum((2 * rank - size - 1) * count for rank, count in enumerate(ascending, start=zeros + 1))
    return weighted / (size * sum(ascending)) if ascending else 0.0


def exposure_counts(lists: Iterable[Sequence[SemanticId]], k: int) -> Counter[SemanticId]:
    """How often each item is among the first k of a list."""
    return Counter(item for items in lists for item in items[:k])


def read_rows(predictions: Predictions, ground_truth: GroundTruth) -> list[RankedRow]:
    """Checked rows. Raises ValueError, naming the position, if the arguments are not as described above."""
    lists = _lists(predictions)
    if len(lists) != len(ground_truth):
        raise ValueError(f"there are predictions for {len(lists)} rows and ground truth for {len(ground_truth)}")
    return [
        RankedRow(items, _relevant(truth, f"ground_truth[{number}]"))
        for number, (items, truth) in enumerate(zip(lists, ground_truth, strict=True))
    ]


def check_k(k: int) -> None:
    if not isinstance(k, Integral) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k is {k!r}, expected an integer of 1 or more")


def _is_hit(row: RankedRow, rank: int) -> bool:
    return rank <= len(row.predicted) and row.predicted[rank - 1] in row.relevant


def _exposures(
    lists: list[tuple[SemanticId, ...]], catalogue: int | Collection[Sequence[int]], k: int
) -> tuple[int, Counter[SemanticId]]:
    """(n, how often each item is exposed, without items that are not)."""
    check_k(k)
    if not lists:
        raise ValueError("there are no predictions to measure")
    counts = exposure_counts(lists, k)
    if not isinstance(catalogue, Collection):
        if catalogue < max(1, len(counts)):
            raise ValueError(f"{len(counts)} distinct items are recommended from a catalogue of {catalogue}")
        return int(catalogue), counts
    items = {_triple(item, f"catalogue[{number}]") for number, item in enumerate(catalogue)}
    if not items:
        raise ValueError("the catalogue is empty")
    return len(items), Counter({item: count for item, count in counts.items() if item in items})


def _lists(predictions: Predictions) -> list[tuple[SemanticId, ...]]:
    return [_list(items, f"predictions[{number}]") for number, items in enumerate(predictions)]


def _list(items: Any, place: str) -> tuple[SemanticId, ...]:
    if not _is_iterable(items):
        raise ValueError(f"{place} is {items!r}, expected a list of (l1, l2, l3)")
    triples = (_triple(item, f"{place}[{number}]") for number, item in enumerate(items))
    return tuple(dict.fromkeys(triples))  # keeps the first of equal items


def _relevant(truth: Any, place: str) -> frozenset[SemanticId]:
    if _is_iterable(truth) and len(truth) > 0 and isinstance(truth[0], Integral):
        return frozenset([_triple(truth, place)])
    items = frozenset(_list(truth, place))
    if not items:
        raise ValueError(f"{place} is empty, expected at least one relevant item")
    return items


def _triple(item: Any, place: str) -> SemanticId:
    if not _is_iterable(item) or len(item) != LEVELS or not all(isinstance(level, Integral) for level in item):
        raise ValueError(f"{place} is {item!r}, expected three integers (l1, l2, l3)")
    return tuple(int(level) for level in item)  # type: ignore[return-value]


def _is_iterable(value: Any) -> bool:
    return isinstance(value, Iterable) and isinstance(value, Collection) and not isinstance(value, str | bytes | dict)
