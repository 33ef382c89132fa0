"""Cuts the histories of a batch to their most recent tokens, as the conversion cuts those of a row.

B rows, S the longest history, N rejected items.
"""

from typing import cast

import torch
from torch import Tensor

from ugt_composer.data.batch import Batch
from ugt_composer.data.codec import UNKNOWN_TIME
from ugt_composer.vocabulary import PAD, USER


def with_recent_history(batch: Batch, size: int) -> Batch:
    """The batch with histories of at most `size` tokens: the leading user token, if there is one, and the last of the
    others, whose positions decrease so that the smallest stays the same. Nothing waits for the device.

    Rows with a rejected item keep their history, because stored log-probabilities of a reference belong to it. A batch
    that is cut has no `encoder_tokens`: how many tokens are left is only known on the device.
    """
    mask = batch["encoder_mask"]
    length = mask.shape[1]
    if length <= size:
        return batch
    width = length if batch["rejected_mask"].shape[1] else size
    drop = (mask.sum(1, keepdim=True) - size).clamp(min=0)
    drop = drop.masked_fill(batch["rejected_mask"].any(1, keepdim=True), 0)
    is_user = (batch["encoder_token_types"] == USER) & mask & (torch.arange(length, device=mask.device) == 0)
    places = torch.arange(width, device=mask.device).expand(len(mask), -1)
    source = (places + drop).clamp(max=length - 1)
    source = torch.where((places == 0) & is_user[:, :1], 0, source)
    kept = places + drop < mask.sum(1, keepdim=True)
    positions, is_other = batch["encoder_positions"], mask & ~is_user
    moved, moves = positions.gather(1, source), kept & is_other.gather(1, source)
    shift = _smallest(moved, moves) - _smallest(positions, is_other)
    cut: dict[str, Tensor] = {
        "encoder_ids": batch["encoder_ids"].gather(
            1, source.unsqueeze(2).expand(-1, -1, batch["encoder_ids"].shape[2])
        ),
        "encoder_positions": torch.where(moves, moved - shift, moved),
        "encoder_token_types": batch["encoder_token_types"].gather(1, source),
        "encoder_actions": batch["encoder_actions"].gather(1, source),
    }
    for name, values in cut.items():
        cut[name] = values.masked_fill(~(kept if values.dim() == 2 else kept.unsqueeze(2)), PAD)
    cut["encoder_times"] = batch["encoder_times"].gather(1, source).masked_fill(~kept, UNKNOWN_TIME)
    rest = {name: value for name, value in batch.items() if name != "encoder_tokens"}
    return cast(Batch, {**rest, **cut, "encoder_mask": kept})


def _smallest(positions: Tensor, counted: Tensor) -> Tensor:
    """(B, 1): of the positions that count, 0 if there are none."""
    largest = torch.iinfo(positions.dtype).max
    smallest = positions.masked_fill(~counted, largest).amin(1, keepdim=True)
    return smallest.masked_fill(~counted.any(1, keepdim=True), 0)
