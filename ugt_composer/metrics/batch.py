"""The contribution of one batch to an evaluation's metrics, for all cut-offs at once and without device syncs.

Shapes: B rows, K recommendations, T targets, N rejected items, 3 levels, M averaged losses. The definitions of the
ranking metrics are in metrics/ranking.py. All operations work on a GPU under `torch.use_deterministic_algorithms` (a
cumsum of floats would not), and none is one that autocast runs in half precision.
"""

from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from ugt_composer.generation.beam_search import Recommendations
from ugt_composer.metrics.calculator import ROW_METRICS as DEFINITIONS
from ugt_composer.vocabulary import LEVELS

ROW_METRICS = tuple(DEFINITIONS)


class RankedBatch(NamedTuple):
    """The ranking metrics of one batch; column k - 1 of a (B, K) tensor is the value at cut-off k.

    Attributes:
        counted: bool (B,) rows that count: not filler rows, and with at least one target.
        item_index: int64 (B, K) recommended items, 0 in empty places.
        shown: int32 (B, K), 1 where a counted row shows an item, else 0.
        row_values: metric → float32 (B, K) for each of ROW_METRICS, then (B, 1) for mrr, which has no cut-off.
        rows: int64 () number of rows that count.
        sums: float64 (6 K + 1,) sums of `row_values` over these rows, in the order of its columns.
    """

    counted: Tensor
    item_index: Tensor
    shown: Tensor
    row_values: dict[str, Tensor]
    rows: Tensor
    sums: Tensor


@dataclass(frozen=True, eq=False)
class EvaluationBatch:
    """All values that one batch adds to an evaluation.

    Attributes:
        ranked: the ranked rows.
        loss_sums: (M,) sums over the batch.
        loss_counts: (M,) the counts that the sums are divided by.
        pairs: float64 (2,), as returned by `compare_pairs`.
        number: unique id: all metrics of an evaluation pass on the same batch, and `EvaluationSums` adds it once.
    """

    ranked: RankedBatch
    loss_sums: Tensor
    loss_counts: Tensor
    pairs: Tensor
    number: int = field(default_factory=count().__next__, init=False)


def rank_batch(recommendations: Recommendations, targets: Tensor, target_mask: Tensor, row_mask: Tensor) -> RankedBatch:
    """Compares recommendations with targets. The recommendations of a row are distinct.

    Args:
        recommendations: of B rows, K each.
        targets: int64 (B, T, 3) relevant items; an item that a row repeats counts once.
        target_mask: bool (B, T), False where there is no target.
        row_mask: bool (B,), False for rows that do not count.
    """
    ids, index = recommendations.ids, recommendations.item_index
    relevant = _distinct_targets(targets, target_mask)
    is_item = index >= 0
    is_pair = is_item.unsqueeze(2) & target_mask.unsqueeze(1)  # (B, K, T)
    places = torch.arange(1, ids.shape[1] + 1, dtype=torch.int32, device=ids.device)
    hits = [(same & is_pair).any(2) for same in _same_prefix(ids, targets)]
    hit_rates = [(_first_place(hit, places) <= places).float() for hit in hits]
    hit = hits[-1]
    discounts = 1 / torch.log2(places.double() + 1)
    up_to = (places.unsqueeze(1) <= places).double()  # (K, K): `values @ up_to` are the sums of the first 1 .. K values
    ideal = (discounts @ up_to)[torch.minimum(relevant.unsqueeze(1), places).clamp(min=1) - 1]
    values = {
        "recall": hit.cumsum(1) / relevant.clamp(min=1).unsqueeze(1),
        "ndcg": ((hit * discounts) @ up_to / ideal).float(),
        "hit_rate": hit_rates[2],
        "hit_rate_l1": hit_rates[0],
        "hit_rate_l1_l2": hit_rates[1],
        "diversity": _is_new_l1(ids, is_item).cumsum(1) / is_item.cumsum(1).clamp(min=1),
    }
    row_values = {name: values[name] for name in ROW_METRICS} | {"mrr": (hit / places).amax(1, keepdim=True)}
    counted = row_mask & (relevant > 0)
    shown = (is_item & counted.unsqueeze(1)).int()
    all_values = torch.cat(list(row_values.values()), dim=1).masked_fill_(~counted.unsqueeze(1), 0)
    sums = all_values.sum(0, dtype=torch.float64)
    return RankedBatch(counted, index.clamp(min=0), shown, row_values, counted.sum(), sums)


def compare_pairs(chosen: Tensor, rejected: Tensor, mask: Tensor) -> Tensor:
    """(number of pairs whose chosen item has the higher log-probability, number of pairs); ties count half.

    Args:
        chosen: (B,) log-probabilities.
        rejected: (B, N) log-probabilities.
        mask: bool (B, N), False where there is no pair; the log-probability may be NaN there.

    Returns:
        float64 (2,).
    """
    margins = chosen.unsqueeze(1) - rejected
    wins = ((margins > 0) + 0.5 * (margins == 0)).masked_fill(~mask, 0)
    return torch.stack([wins.sum(dtype=torch.float64), mask.sum(dtype=torch.float64)])


def _distinct_targets(targets: Tensor, target_mask: Tensor) -> Tensor:
    """Number of distinct targets of each row: int64 (B,)."""
    same = _same_prefix(targets, targets)[-1] & target_mask.unsqueeze(1)
    return (target_mask & ~same.tril(-1).any(2)).sum(1)


def _same_prefix(left: Tensor, right: Tensor) -> list[Tensor]:
    """Whether triples (B, M, 3) and (B, N, 3) agree in the first 1, 2 and 3 levels: three bool (B, M, N)."""
    same = [left[..., level].unsqueeze(2) == right[..., level].unsqueeze(1) for level in range(LEVELS)]
    return [same[0], same[0] & same[1], same[0] & same[1] & same[2]]


def _first_place(hit: Tensor, places: Tensor) -> Tensor:
    """The place of the first True in each row of `hit` bool (B, K), `places` being 1 .. K; K + 1 if none: (B, 1)."""
    return torch.where(hit, places, len(places) + 1).amin(1, keepdim=True)


def _is_new_l1(ids: Tensor, is_item: Tensor) -> Tensor:
    """Whether a recommendation is the first of its row with its l1: bool (B, K)."""
    l1, places = ids[..., 0].int().sort(dim=1, stable=True)
    first = torch.ones_like(is_item)
    first[:, 1:] = l1[:, 1:] != l1[:, :-1]
    return is_item & torch.zeros_like(is_item).scatter(1, places, first)  # empty places are last: they hide no item
