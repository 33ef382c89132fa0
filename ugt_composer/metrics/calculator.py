"""All ranking metrics of predictions that are added batch by batch."""

from collections.abc import Callable, Sequence
from functools import partial

from ugt_composer.metrics.ranking import (
    GroundTruth,
    Predictions,
    RankedRow,
    check_k,
    exposure_counts,
    gini_of_counts,
    mean_over_rows,
    read_rows,
    row_diversity,
    row_hit,
    row_ndcg,
    row_recall,
    row_reciprocal_rank,
)

ROW_METRICS: dict[str, Callable[[RankedRow, int], float]] = {
    "recall": row_recall,
    "ndcg": row_ndcg,
    "hit_rate": row_hit,
    "hit_rate_l1": partial(row_hit, levels=1),
    "hit_rate_l1_l2": partial(row_hit, levels=2),
    "diversity": row_diversity,
}


class MetricsCalculator:
    """Collects rows and computes their metrics; the definitions are in metrics/ranking.py.

    Args:
        catalogue_size: number of items that coverage and gini refer to. None: the distinct items so far, in complete
            prediction lists and in the ground truth; both metrics then look too good if many items never appear.
    """

    def __init__(self, catalogue_size: int | None = None):
        self.catalogue_size = catalogue_size
        self._rows: list[RankedRow] = []

    def add_batch(self, predictions: Predictions, ground_truth: GroundTruth) -> None:
        """Adds rows. Raises ValueError, and adds none of them, if one is malformed."""
        self._rows.extend(read_rows(predictions, ground_truth))

    def compute(self, k_values: Sequence[int] = (5, 10, 20, 50)) -> dict[str, float]:
        """Metrics of all rows so far: mrr and, for each K, recall@K, ndcg@K, hit_rate@K (all levels agree),
        hit_rate_l1@K and hit_rate_l1_l2@K (only these need to), diversity@K, coverage@K and gini@K."""
        if not self._rows:
            raise ValueError("there is nothing to compute: call add_batch first")
        metrics = {"mrr": mean_over_rows(self._rows, row_reciprocal_rank, 1)}
        size = self.catalogue_size or self._items_seen()
        for k in k_values:
            check_k(k)
            metrics |= {f"{name}@{k}": mean_over_rows(self._rows, value, k) for name, value in ROW_METRICS.items()}
            counts = exposure_counts((row.predicted for row in self._rows), k)
            if size < len(counts):
                raise ValueError(f"{len(counts)} distinct items are recommended from a catalogue of {size}")
            metrics |= {f"coverage@{k}": len(counts) / size, f"gini@{k}": gini_of_counts(counts.values(), size)}
        return metrics

    def reset(self) -> None:
        """Forgets all rows."""
        self._rows = []

    def _items_seen(self) -> int:
        return len(frozenset().union(*(row.relevant.union(row.predicted) for row in self._rows)))
