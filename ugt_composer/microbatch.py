"""Batches to microbatches that know the whole batch they come from, as narrow as their rows allow."""

import math
from typing import Any, cast

from composer.utils import dist

from ugt_composer.data.batch import Batch
from ugt_composer.losses.normalization import batch_counts

INPUTS = ("ids", "positions", "token_types", "mask")
WIDE_AS = {  # the tensors that are padded to the longest row of a side
    "encoder": [f"encoder_{name}" for name in INPUTS],
    "decoder": [*(f"decoder_{name}" for name in INPUTS), "labels"],
}


class Uncopied(dict):
    """A microbatch that Composer, which copies each one whole before it is used, gets for a copy of itself: nothing
    writes into its tensors."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Uncopied":
        return self


def rows_in_batch(batch: Batch) -> int:
    return len(batch["row_ids"])


def split_batch(batch: Batch, microbatch_size: int | float) -> list[Batch]:
    """Cuts a device's batch into microbatches, each with the counts of the global batch.

    A loss that divides by its own microbatch's count would weight a label by its neighbours; divided by the count of
    the whole batch, over all ranks, the sum of the microbatches' gradients is the batch's own. One small all-reduce a
    batch, on the device. Where the host knows the rows' lengths, padding that none of a microbatch's rows needs is cut.
    """
    rows, size = rows_in_batch(batch), max(1, int(microbatch_size))
    totals = batch_counts(batch)
    dist.all_reduce(totals, reduce_operation="SUM")
    starts = range(0, math.ceil(rows / size) * size, size)
    return [{**_piece(batch, slice(start, start + size)), "batch_totals": totals} for start in starts]


def _piece(batch: Batch, rows: slice) -> Batch:
    piece = {key: value[rows] for key, value in cast(dict[str, Any], batch).items()}
    for side, keys in WIDE_AS.items():
        if lengths := piece.pop(f"{side}_lengths", None):
            piece |= {key: piece[key][:, : max(lengths)] for key in keys}
    return cast(Batch, piece)
