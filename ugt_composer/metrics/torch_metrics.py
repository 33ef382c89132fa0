"""Metrics that accumulate over batches and ranks: sums and counts, so that the batches' sizes do not matter.

`compute` gives NaN where no row has counted: no measurement is not a measurement of 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ugt_composer.metrics.batch import RankedBatch

ROW_METRICS = ("recall", "ndcg", "hit_rate", "hit_rate_l1", "hit_rate_l1_l2", "diversity")


class Tally(Metric):
    """A metric whose states only add up."""

    full_state_update = False

    @property
    def update_called(self) -> bool:
        return True  # where nothing has been counted the value is NaN, and that is no mistake to warn of


class RowMean(Tally):
    """The mean of a value over rows. Shapes: any, the same for values and mask."""

    sum: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sum", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Tensor, mask: Tensor) -> None:
        """Adds the values where bool `mask` is True; what stands elsewhere may be NaN."""
        self.sum += values.masked_fill(~mask, 0).sum(dtype=torch.float64)
        self.count += mask.sum()

    def compute(self) -> Tensor:
        return (self.sum / self.count).float()


class PairAccuracy(RowMean):
    """The share of (chosen, rejected) pairs whose chosen item has the higher log-probability; equal ones count half."""

    def update(self, chosen: Tensor, rejected: Tensor, mask: Tensor) -> None:  # type: ignore[override]
        """chosen (B,) and rejected (B, N) log-probabilities, mask bool (B, N) False: no pair there."""
        margins = chosen.unsqueeze(1) - rejected
        super().update((margins > 0) + 0.5 * (margins == 0), mask)


class RankingMean(RowMean):
    """One of ROW_METRICS at a cut-off, or "mrr" with k = 1."""

    def __init__(self, name: str, k: int):
        super().__init__()
        self.name, self.k = name, k

    def update(self, ranked: RankedBatch) -> None:  # type: ignore[override]
        self.sum += ranked.sums[self.name][self.k - 1]
        self.count += ranked.rows


class Exposure(Tally):
    """How often each item of the catalogue is among the first k; subclasses say how evenly.

    Args:
        catalogue_size: n distinct items, which `RankedBatch.item_index` refers to.
        k: cut-off.
    """

    counts: Tensor

    def __init__(self, catalogue_size: int, k: int):
        super().__init__()
        self.k = k
        # (n,); 32 bits, because a checkpoint holds one of these for each metric and cut-off
        self.add_state("counts", default=torch.zeros(catalogue_size, dtype=torch.int32), dist_reduce_fx="sum")

    def update(self, ranked: RankedBatch) -> None:
        self.counts.index_add_(0, ranked.item_index[:, : self.k].flatten(), ranked.shown[:, : self.k].flatten())


class Coverage(Exposure):
    """`metrics.ranking.coverage`."""

    def compute(self) -> Tensor:
        share = (self.counts > 0).float().mean()
        return share.masked_fill(self.counts.sum() == 0, torch.nan)


class Gini(Exposure):
    """`metrics.ranking.gini`."""

    def compute(self) -> Tensor:
        # Items that are shown equally often have neighbouring ranks j, whose factors 2 j - n - 1 sum up in closed form.
        n, alike = len(self.counts), self.counts.bincount().double()
        shown = torch.arange(len(alike), device=alike.device) * alike
        factors = 2 * alike.cumsum(0) - alike - n
        return (factors * shown).sum().div(n * shown.sum()).float()


def build_ranking_metrics(k_values: Sequence[int], catalogue_size: int | None) -> dict[str, Metric]:
    """Metrics by name, each updated with a RankedBatch of at least max(k_values) recommendations a row.

    Without a catalogue's size there is no coverage and no gini: nothing says what they would refer to.
    """
    metrics: dict[str, Metric] = {"mrr": RankingMean("mrr", 1)}
    for k in k_values:
        metrics |= {f"{name}@{k}": RankingMean(name, k) for name in ROW_METRICS}
        if catalogue_size is not None:
            metrics |= {f"coverage@{k}": Coverage(catalogue_size, k), f"gini@{k}": Gini(catalogue_size, k)}
    return metrics
