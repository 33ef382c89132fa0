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

from ugt_composer.catalogue.open_nodes import OpenNodes
from ugt_composer.generation.beam_search import Recommendations
from ugt_composer.metrics.calculator import ROW_METRICS as DEFINITIONS
from ugt_composer.metrics.shared_ids import ItemLists, item_lists
from ugt_composer.vocabulary import LEVELS

ROW_METRICS = tuple(DEFINITIONS)
ID_METRICS = {name: f"id_{name}" for name in ("recall", "ndcg", "hit_rate", "mrr")}  # of semantic IDs, not of items


class RankedBatch(NamedTuple):
    """The ranking metrics of one batch; column k - 1 of a (B, K) tensor is the value at cut-off k.

    Attributes:
        counted: bool (B,) rows that count: not filler rows, and with at least one target.
        item_index: int64 (B, K) recommended items, 0 in empty places.
        shown: int32 (B, K), 1 where a counted row shows an item, else 0.
        row_values: metric → float32 (B, K) for each metric with a cut-off, then (B, 1) for those without one.
        rows: int64 () number of rows that count.
        sums: float64 (columns of all row_values,) sums of `row_values` over these rows, in the order of its columns.
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


def rank_batch(
    recommendations: Recommendations,
    targets: Tensor,
    target_mask: Tensor,
    row_mask: Tensor,
    members: Tensor | None = None,
    target_members: Tensor | None = None,
    open_nodes: OpenNodes | None = None,
) -> RankedBatch:
    """Compares recommendations with targets. The recommendations of a row are distinct.

    Where several items share a semantic ID, the metrics are those of the lists of items (`item_lists`): of the targets
    themselves if they are known, else the expected values if each of the items that share a target's ID is equally
    likely to be the target. The metrics of the lists of IDs are added under `ID_METRICS`.

    Args:
        recommendations: of B rows, K each.
        targets: int64 (B, T, 3) relevant items; an item that a row repeats counts once.
        target_mask: bool (B, T), False where there is no target.
        row_mask: bool (B,), False for rows that do not count.
        members: int64 (n,) how many items have each semantic ID of the catalogue; None: none is shared.
        target_members: int64 (B, T) which of the items that share its ID each target is, -1 where unknown. Of a row all
            or none are known. None: unknown.
        open_nodes: what may be recommended; None: everything. A target that is withheld counts as not found.
    """
    relevant = _distinct_targets(targets, target_mask, None if members is None else target_members)
    lists = item_lists(recommendations, members, open_nodes)
    values = _list_values(
        lists, targets, target_mask, relevant, None if members is None else target_members, open_nodes is not None
    )
    if members is not None:
        of_ids_relevant = _distinct_targets(targets, target_mask)
        of_ids = _list_values(item_lists(recommendations, None), targets, target_mask, of_ids_relevant)
        values |= {ID_METRICS[name]: of_ids[name] for name in ID_METRICS}
    row_values = {name: value for at_cuts in (True, False) for name, value in values.items() if is_cut(name) == at_cuts}
    counted = row_mask & (relevant > 0)
    shown = (lists.is_item & counted.unsqueeze(1)).int()
    all_values = torch.cat(list(row_values.values()), dim=1).masked_fill_(~counted.unsqueeze(1), 0)
    sums = all_values.sum(0, dtype=torch.float64)
    return RankedBatch(counted, lists.item_index, shown, row_values, counted.sum(), sums)


def is_cut(metric: str) -> bool:
    """Whether a metric of a row has a cut-off; only the reciprocal rank has none."""
    return metric not in ("mrr", ID_METRICS["mrr"])


def _list_values(
    lists: ItemLists,
    targets: Tensor,
    target_mask: Tensor,
    relevant: Tensor,
    target_members: Tensor | None = None,
    some_withheld: bool = False,
) -> dict[str, Tensor]:
    """float32 (B, K) for each of ROW_METRICS, and (B, 1) for mrr.

    Args:
        relevant: int64 (B,) distinct targets.
        some_withheld: the lists may lack some of the items that share an ID.
    """
    ids, is_item = lists.ids, lists.is_item
    is_pair = is_item.unsqueeze(2) & target_mask.unsqueeze(1)  # (B, K, T)
    places = torch.arange(1, ids.shape[1] + 1, dtype=torch.int32, device=ids.device)
    pairs = [same & is_pair for same in _same_prefix(ids, targets)]
    group, weight = lists.group, lists.weight
    if target_members is not None:
        is_known = (target_members >= 0).any(1, keepdim=True)
        pairs[-1] = pairs[-1] & ((lists.member.unsqueeze(2) == target_members.unsqueeze(1)) | ~is_known.unsqueeze(2))
        group = torch.where(is_known, places - 1, group)  # each item is a group of its own
        weight = weight.masked_fill(is_known, 1)
    hits = [pair.any(2) for pair in pairs]
    prefix_hits = [(_first_place(hit, places) <= places).float() for hit in hits[:-1]]
    gain = hits[-1] * weight  # float64; for items that share an ID, the probability of a hit at this place
    discounts = 1 / torch.log2(places.double() + 1)
    up_to = (places.unsqueeze(1) <= places).double()  # (K, K): `values @ up_to` are the sums of the first 1 .. K values
    gained = gain @ up_to
    ideal = (discounts @ up_to)[torch.minimum(relevant.unsqueeze(1), places).clamp(min=1) - 1]
    # Of the IDs of a row's targets at most one is cut by a cut-off, and all others have been gained as a whole or not
    # at all. So the probability that there is a hit is the sum of all, at most 1.
    values = {
        "recall": gained / relevant.clamp(min=1).unsqueeze(1),
        "ndcg": (gain * discounts) @ up_to / ideal,
        "hit_rate": gained.clamp(max=1),
        "hit_rate_l1": prefix_hits[0],
        "hit_rate_l1_l2": prefix_hits[1],
        "diversity": _is_new_l1(ids, is_item).cumsum(1) / is_item.cumsum(1).clamp(min=1),
    }
    first = torch.where(hits[-1], group, ids.shape[1]).amin(1, keepdim=True)
    reciprocal = (gain / places * (group == first)).sum(1, keepdim=True)
    if some_withheld:
        missed = _chance_of_no_hit(gain, gained, group, up_to)
        values["hit_rate"] = 1 - missed
        reciprocal = (-missed.diff(prepend=torch.ones_like(missed[:, :1])) / places).sum(1, keepdim=True)
    return {name: values[name].float() for name in ROW_METRICS} | {"mrr": reciprocal.float()}


def _chance_of_no_hit(gain: Tensor, gained: Tensor, group: Tensor, up_to: Tensor) -> Tensor:
    """The probability that none of the first 1 .. K items is a target: float64 (B, K).

    Targets with different IDs are independent: it is the product, over the IDs in the list, of 1 − the sum of the ID's
    gains. So each place multiplies it by (1 − the sum with it) / (1 − the sum before it).
    """
    starts = torch.searchsorted(group, group)  # the first place of each ID
    before_group = torch.nn.functional.pad(gained, (1, 0)).gather(1, starts)
    left = 1 - (gained - before_group)
    least = 1e-300  # keeps a certain hit from becoming log 0, which times 0 is NaN
    factors = left.clamp(min=least) / (left + gain).clamp(min=least)
    return (factors.log() @ up_to).exp()


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


def _distinct_targets(targets: Tensor, target_mask: Tensor, target_members: Tensor | None = None) -> Tensor:
    """Number of distinct targets of each row: int64 (B,)."""
    same = _same_prefix(targets, targets)[-1] & target_mask.unsqueeze(1)
    if target_members is not None:
        same = same & (target_members.unsqueeze(1) == target_members.unsqueeze(2))
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
