"""Lists of items from lists of semantic IDs that several items may share, as `ugt recommend` prints them.

Shapes: B rows, K places, n distinct semantic IDs. A list of IDs, best first, becomes the list of their items: those of
the first ID in the order of their item ids, then those of the second, and so on, without items that are withheld.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ugt_composer.catalogue.open_nodes import OpenNodes
from ugt_composer.generation.beam_search import Recommendations


class ItemLists(NamedTuple):
    """The first K items of each list; where there are fewer, `is_item` is False.

    Attributes:
        ids: int64 (B, K, 3).
        item_index: int64 (B, K) number of the item among those that may be recommended, ordered by semantic ID; 0 in
            empty places.
        is_item: bool (B, K).
        member: int64 (B, K) number of the item, from 0, among those that share its semantic ID.
        group: int64 (B, K) place of the item's semantic ID in the list of IDs, from 0.
        weight: float64 (B, K) 1 / number of items that share the ID: how likely it is that this item is the one that
            is meant if only its ID is known.
    """

    ids: Tensor
    item_index: Tensor
    is_item: Tensor
    member: Tensor
    group: Tensor
    weight: Tensor


def item_lists(
    recommendations: Recommendations, members: Tensor | None, open_nodes: OpenNodes | None = None
) -> ItemLists:
    """
    Args:
        recommendations: of B rows, K semantic IDs each.
        members: int64 (n,) how many items have each semantic ID; None: one each.
        open_nodes: what may be recommended, at least one item; None: everything.
    """
    ids, index = recommendations.ids, recommendations.item_index
    exists = index >= 0
    places = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1).contiguous()
    if members is None and open_nodes is None:
        return ItemLists(
            ids,
            index.clamp(min=0),
            exists,
            torch.zeros_like(places),
            places,
            torch.ones_like(places, dtype=torch.float64),
        )
    index = index.clamp(min=0)
    listed = open_nodes.members if open_nodes is not None else members
    assert listed is not None
    sizes = listed[index] * exists
    ends = sizes.cumsum(1)
    group = torch.searchsorted(ends, places, right=True).clamp_(max=ids.shape[1] - 1)
    is_item = places < ends[:, -1:]
    index = index.gather(1, group)
    member = places - (ends - sizes).gather(1, group)
    item_index = ((listed.cumsum(0) - listed)[index] + member).masked_fill(~is_item, 0)
    if open_nodes is not None:
        member = open_nodes.numbers[item_index]
    weight = torch.ones_like(member) if members is None else members[index]
    return ItemLists(
        ids.gather(1, group.unsqueeze(2).expand(-1, -1, ids.shape[2])).masked_fill(~is_item.unsqueeze(2), 0),
        item_index,
        is_item,
        member,
        group,
        1 / weight.double(),
    )
