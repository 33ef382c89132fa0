"""An evaluation's metrics, summed over batches and ranks: exact for any batch sizes.

Composer takes one Metric for each name that it logs. All of ours share one `EvaluationSums`, so any number of metrics
and cut-offs takes two collectives over the ranks and two synchronisations with the device. A value is NaN, not 0, if no
row has counted.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ugt_composer.losses.normalization import PREFERENCE_WEIGHT
from ugt_composer.losses.ranks import sum_over_ranks
from ugt_composer.losses.term import Mean
from ugt_composer.metrics.batch import ID_METRICS, ROW_METRICS, EvaluationBatch, is_cut
from ugt_composer.metrics.loss_mean import loss_mean


class EvaluationSums:
    """All sums of an evaluation, in two tensors on its device, which exist from the first batch to the next reset.

    Args:
        means: M values that are averaged, in the order of `EvaluationBatch.loss_sums`.
        losses: weighted sums of the means by the name of the metric: {metric: {mean: weight}}.
        k_values: C cut-offs of the ranking metrics.
        catalogue_size: n items that may be recommended, which `RankedBatch.item_index` refers to. None: no coverage
            and gini, because they are relative to a catalogue.
        has_shared_ids: whether the batches also have the metrics of semantic IDs that several items share.
    """

    _sums: Tensor | None
    _shown: Tensor | None
    _values: dict[str, Tensor] | None
    _added: set[int]  # numbers of the batches

    def __init__(
        self,
        means: Sequence[Mean],
        losses: Mapping[str, Mapping[str, float]],
        k_values: Sequence[int],
        catalogue_size: int | None,
        has_shared_ids: bool = False,
    ):
        names = [*ROW_METRICS, "mrr", *(ID_METRICS.values() if has_shared_ids else ())]
        self.cut_metrics = [name for name in names if is_cut(name)]
        self.whole_metrics = [name for name in names if not is_cut(name)]
        self.means = tuple(means)
        self.losses = {name: dict(weights) for name, weights in losses.items()}
        self.k_values = tuple(k_values)
        self.cuts = sorted(set(k_values))
        self.catalogue_size = catalogue_size
        self.device = torch.device("cpu")
        self.reset()

    @property
    def names(self) -> list[str]:
        """Names of the metrics, in the order in which they are logged."""
        per_cut = self.cut_metrics if self.catalogue_size is None else [*self.cut_metrics, "coverage", "gini"]
        ranking = [f"{name}@{k}" for k in self.k_values for name in per_cut]
        return [*self.losses, "preference_accuracy", *self.whole_metrics, *ranking]

    def higher_is_better(self, name: str) -> bool:
        """Of one of `names`."""
        if name in self.losses:
            return any(mean.name == name and mean.higher_is_better for mean in self.means)
        return not name.startswith("gini@")

    def is_of_ranking(self, name: str) -> bool:
        """Whether one of `names` is computed from ranked rows, which are those without a rejected item."""
        return name in self.whole_metrics or "@" in name

    def is_of_pairs(self, name: str) -> bool:
        """Whether one of `names` is computed from rows with a rejected item."""
        pairs = {mean.name for mean in self.means if mean.counted_by == PREFERENCE_WEIGHT}
        return name == "preference_accuracy" or name in pairs

    def to(self, device: torch.device) -> None:
        self.device = device
        if self._sums is not None:
            self._sums = self._sums.to(device)
        if self._shown is not None:
            self._shown = self._shown.to(device)

    def reset(self) -> None:
        self._sums = self._shown = self._values = None
        self._added = set()

    def add(self, batch: EvaluationBatch) -> None:
        """Adds a batch with max(k_values) recommendations per row; does nothing if it was added before."""
        if batch.number in self._added:
            return
        ranked = batch.ranked
        added = [batch.loss_sums, batch.loss_counts, batch.pairs, ranked.rows.unsqueeze(0), ranked.sums]
        sums, shown = self._tensors()
        sums += torch.cat(added)
        if shown is not None:
            cells = ranked.item_index + self._first_cell_of_places()
            shown.view(-1).index_add_(0, cells.flatten(), ranked.shown.flatten())
        self._added.add(batch.number)
        self._values = None

    def values(self) -> dict[str, Tensor]:
        """Every metric over the batches of all ranks: float32 () on the CPU.

        Every rank has to call it equally often, because it sums over the ranks. The result is kept until the next batch
        or reset.
        """
        if self._values is None:
            self._values = self._compute()
        return self._values

    def _tensors(self) -> tuple[Tensor, Tensor | None]:
        """Sums float64 (2 M + 3 + metrics with a cut-off × max k + those without,), and how often each item was shown.

        The latter is int32 (C, n): row c counts only the places after cut-off c - 1 up to cut-off c, so that a shown
        item takes one addition for any number of cut-offs.
        """
        if self._sums is None:
            size = sum(self._sizes())
            self._sums = torch.zeros(size, dtype=torch.float64, device=self.device)
            if self.catalogue_size is not None:
                shape = len(self.cuts), self.catalogue_size
                self._shown = torch.zeros(shape, dtype=torch.int32, device=self.device)
        return self._sums, self._shown

    def _sizes(self) -> list[int]:
        """Of the parts of the sums: losses, their counts, pairs, rows, metrics by place, metrics without a cut-off."""
        return [len(self.means), len(self.means), 2, 1, len(self.cut_metrics) * self.cuts[-1], len(self.whole_metrics)]

    def _first_cell_of_places(self) -> Tensor:
        """For each place, the offset of its row in the flattened (C, n) counts: int64 (max k,)."""
        assert self.catalogue_size is not None
        places = torch.arange(self.cuts[-1], device=self.device)
        return sum(((places >= k) * self.catalogue_size for k in self.cuts[:-1]), torch.zeros_like(places))

    def _compute(self) -> dict[str, Tensor]:
        sums, shown = self._tensors()
        sums = sum_over_ranks(sums)
        values: dict[str, Tensor] = {}
        if shown is None:
            sums_on_cpu = sums.cpu()
        else:
            counts = sum_over_ranks(shown).cumsum(0, dtype=torch.int32)
            sums_on_cpu, most = torch.cat([sums, counts[-1].max().unsqueeze(0)]).cpu().split([len(sums), 1])
            coverage, gini = coverage_and_gini(counts, int(most)).cpu()
            values |= {f"coverage@{k}": coverage[cut] for cut, k in enumerate(self.cuts)}
            values |= {f"gini@{k}": gini[cut] for cut, k in enumerate(self.cuts)}
        loss_sums, loss_counts, pairs, rows, by_place, whole = sums_on_cpu.split(self._sizes())
        names = [mean.name for mean in self.means]
        values |= {name: loss_mean(names, weights, loss_sums, loss_counts) for name, weights in self.losses.items()}
        values |= {"preference_accuracy": pairs[0] / pairs[1]}
        values |= dict(zip(self.whole_metrics, whole / rows, strict=True))
        means = (by_place / rows).view(len(self.cut_metrics), -1)
        for k in self.cuts:
            values |= {f"{name}@{k}": means[metric, k - 1] for metric, name in enumerate(self.cut_metrics)}
        return {name: value.float() for name, value in values.items()}


def coverage_and_gini(counts: Tensor, most: int) -> Tensor:
    """`metrics.ranking.coverage` and `gini` at each cut-off: float64 (2, C), NaN where nothing was shown.

    Args:
        counts: int32 (C, n) how often each item was shown.
        most: the largest of the counts.
    """
    # Items that are shown equally often have adjacent ranks j, so their factors 2 j - n - 1 have a closed-form sum.
    n = counts.shape[1]
    items_by_count = torch.zeros(len(counts), most + 1, dtype=torch.int64, device=counts.device)
    one = torch.ones((), dtype=torch.int64, device=counts.device)
    for items, shown in zip(items_by_count, counts, strict=True):
        items.index_add_(0, shown, one.expand(n))
    exposures = (torch.arange(most + 1, device=counts.device) * items_by_count).double()
    factors = (2 * items_by_count.cumsum(1) - items_by_count - n).double()
    total = exposures.sum(1)
    coverage = ((n - items_by_count[:, 0]).double() / n).masked_fill(total == 0, torch.nan)
    return torch.stack([coverage, (factors * exposures).sum(1) / (n * total)])


class EvaluationMetric(Metric):
    """One value of an `EvaluationSums`, under the name that it is logged with.

    It has no state of its own: updating, moving or resetting one of the metrics that share the sums does it for all of
    them. A copy of them together shares a copy of the sums.
    """

    full_state_update = False

    def __init__(self, sums: EvaluationSums, name: str):
        # EvaluationSums synchronises and caches, once for all metrics.
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        self.sums = sums
        self.name = name

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        return self.sums.higher_is_better(self.name)

    @property
    def update_called(self) -> bool:
        return True  # keeps torchmetrics from warning if there were no rows: the value is then NaN

    @property
    def device(self) -> torch.device:
        return self.sums.device

    def update(self, batch: EvaluationBatch) -> None:
        self.sums.add(batch)

    def compute(self) -> Tensor:
        return self.sums.values()[self.name]

    def reset(self) -> None:
        super().reset()
        self.sums.reset()

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> "EvaluationMetric":
        # Only the device of the result is needed. An empty tensor takes no copy and so no synchronisation with the
        # device, whereas Torchmetrics copies one element for each metric.
        self.sums.to(fn(torch.empty(0, device=self.device)).device)
        return self


def evaluation_metrics(
    means: Sequence[Mean],
    losses: Mapping[str, Mapping[str, float]],
    k_values: Sequence[int],
    catalogue_size: int | None,
    has_shared_ids: bool = False,
) -> dict[str, Metric]:
    """The metrics by name, each to be updated with every EvaluationBatch; arguments as of `EvaluationSums`."""
    sums = EvaluationSums(means, losses, k_values, catalogue_size, has_shared_ids)
    return {name: EvaluationMetric(sums, name) for name in sums.names}
