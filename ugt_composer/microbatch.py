"""Batches to microbatches that know the whole batch they come from."""

import math
from typing import cast

from composer.utils import dist
from torch import Tensor

from ugt_composer.data.batch import Batch
from ugt_composer.losses.normalization import batch_counts


def rows_in_batch(batch: Batch) -> int:
    return len(batch["row_ids"])


def split_batch(batch: Batch, microbatch_size: int | float) -> list[Batch]:
    """Cuts a device's batch into microbatches, each with the counts of the global batch.

    A loss that divides by its own microbatch's count would weight a label by its neighbours; divided by the count of
    the whole batch, over all ranks, the sum of the microbatches' gradients is the batch's own. One small all-reduce a
    batch, on the device.
    """
    rows, size = rows_in_batch(batch), max(1, int(microbatch_size))
    totals = batch_counts(batch)
    dist.all_reduce(totals, reduce_operation="SUM")
    starts = range(0, math.ceil(rows / size) * size, size)
    pieces = (
        {key: value[start : start + size] for key, value in cast(dict[str, Tensor], batch).items()} for start in starts
    )
    return [{**piece, "batch_totals": totals} for piece in pieces]  # type: ignore[typeddict-item]
