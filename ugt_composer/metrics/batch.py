"""What one batch contributes to an evaluation's metrics, for every cut-off at once and without waiting for the device.

Shapes: B rows, K recommendations, T targets, N rejected items, 3 levels, M averaged losses. The definitions
of the ranking metrics are those of metrics/ranking.py. No operation here is one that PyTorch refuses on a GPU under
`torch.use_deterministic_algorithms` (a cumsum of floats is), and none is lowered to half precision by autocast.
"""

from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from ugt_composer.generation.beam_search import Recommendations
from ugt_composer.vocabulary import LEVELS

ROW_METRICS = ("recall", "ndcg", "hit_rate", "hit_rate_l1", "hit_rate_l1_l2", "diversity")


class RankedBatch(NamedTuple):
    """What one batch says about every metric; column k - 1 of a (B, K) tensor is the value at cut-off k.

    Attributes:
        counted: bool (B,) rows that count: real ones with at least one target.
        item_index: int64 (B, K) recommended items, 0 in empty places.
        shown: int32 (B, K) 1 where a counted row shows an item, else 0.
        row_values: by metric, float32 (B, K) for each of ROW_METRICS, then (B, 1) for mrr, which has no cut-off.
        rows: int64 () how many count.
        sums: float64 (6 K + 1,) the sums of `row_values` over them, in the order of its columns.
    """

    counted: Tensor
    item_index: Tensor
    shown: Tensor
    row_values: dict[str, Tensor]
    rows: Tensor
    sums: Tensor


@dataclass(frozen=True, eq=False)
class EvaluationBatch:
    """Everything that one batch adds to an evaluation.

    Attributes:
        ranked: the ranked rows.
        loss_sums: (M,) sums over the batch.
        loss_counts: (M,) what they are means over.
        pairs: float64 (2,) of `compare_pairs`.
        number: tells batches apart, so that one that is handed over by several metrics is added once.
    """

    ranked: RankedBatch
    loss_sums: Tensor
    loss_counts: Tensor
    pairs: Tensor
    number: int = field(default_factory=count().__next__, init=False)


def rank_batch(recommendations: Recommendations, targets: Tensor, target_mask: Tensor, row_mask: Tensor) -> RankedBatch:
    """Compares recommendations, which are distinct within a row, with targets.

    Args:
        recommendations: of B rows, K each.
        targets: int64 (B, T, 3) relevant items; an item that a row repeats counts once.
        target_mask: bool (B, T) False: no target there.
        row_mask: bool (B,) False: a row that does not count.
    """
    ids, index = recommendations.ids, recommendations.item_index
    relevant = _distinct_targets(targets, target_mask)
    found = index >= 0
    wanted = found.unsqueeze(2) & target_mask.unsqueeze(1)
    places = torch.arange(1, ids.shape[1] + 1, dtype=torch.int32, device=ids.device)
    hits = [(same & wanted).any(2) for same in _same_prefix(ids, targets)]
    hit_rates = [(_first_place(hit, places) <= places).float() for hit in hits]
    hit = hits[-1]
    discounts = 1 / torch.log2(places.double() + 1)
    up_to = (places.unsqueeze(1) <= places).double()  # (K, K): `values @ up_to` are the sums of the first 1 .. K values
    ideal = (discounts @ up_to)[torch.minimum(relevant.unsqueeze(1), places).clamp(min=1) - 1]
    row_values = {
        "recall": hit.cumsum(1) / relevant.clamp(min=1).unsqueeze(1),
        "ndcg": ((hit * discounts) @ up_to / ideal).float(),
        "hit_rate": hit_rates[2],
        "hit_rate_l1": hit_rates[0],
        "hit_rate_l1_l2": hit_rates[1],
        "diversity": _new_l1(ids, found).cumsum(1) / found.cumsum(1).clamp(min=1),
        "mrr": (hit / places).amax(1, keepdim=True),
    }
    counted = row_mask & (relevant > 0)
    shown = (found & counted.unsqueeze(1)).int()
    every = torch.cat(list(row_values.values()), dim=1).masked_fill_(~counted.unsqueeze(1), 0)
    sums = every.sum(0, dtype=torch.float64)
    return RankedBatch(counted, index.clamp(min=0), shown, row_values, counted.sum(), sums)


def compare_pairs(chosen: Tensor, rejected: Tensor, mask: Tensor) -> Tensor:
    """(pairs whose chosen item has the higher log-probability, all pairs); equal log-probabilities count half.

    Args:
        chosen: (B,) log-probabilities.
        rejected: (B, N) log-probabilities.
        mask: bool (B, N) False: no pair there, and the log-probability may be NaN.

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
    """Of bool (B, K) and 1 .. K: where each row's first True is, K + 1 where it has none; (B, 1)."""
    return torch.where(hit, places, len(places) + 1).amin(1, keepdim=True)


def _new_l1(ids: Tensor, found: Tensor) -> Tensor:
    """Whether a recommendation is the first of its row with its l1: bool (B, K)."""
    l1, places = ids[..., 0].int().sort(dim=1, stable=True)
    first = torch.ones_like(found)
    first[:, 1:] = l1[:, 1:] != l1[:, :-1]
    return found & torch.zeros_like(found).scatter(1, places, first)  # empty places come last, so precede nothing
