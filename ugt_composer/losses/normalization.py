"""How sums over a microbatch become the losses and metrics of the global batch.

A trainer averages the microbatches of a rank weighted by their rows, and DDP averages over ranks. With a plain mean
over labels, the result would not be the mean over the labels of the global batch, because microbatches have the same
number of rows, not of labels. So the value of a microbatch is

    sum over the microbatch / count over the global batch * rows of the global batch / rows of the microbatch

Its average over microbatches and ranks, weighted by rows, is exactly the mean over the global batch, for values and
gradients, however the batch was split. This holds for losses and metrics, and for microbatches of uneven size, as long
as all ranks have the same number of rows. Filler rows count as rows, but their labels and preferences are ignored.

The global counts are the sums of `batch_counts` over all microbatches and ranks. Without them, the microbatch is
treated as the whole batch and the value is its plain mean.

Shapes: B rows of the microbatch, T target length, L = 3 levels, N rejected items.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ugt_composer.vocabulary import IGNORE_INDEX

# Indices into the counts (6,). The first three are the labels counted at each level; targets are rows with an item to
# predict.
LABELS_L1, LABELS_L2, LABELS_L3, PREFERENCE_WEIGHT, ROWS, TARGETS = range(6)


def batch_counts(batch: Mapping[str, Any]) -> Tensor:
    """The counts of the rows of `batch`: float32 (6,), on the batch's device."""
    labels = counted_labels(batch["labels"], batch["row_mask"])
    weights = preference_weights(batch["preference_score"], batch["rejected_mask"] & batch["row_mask"][:, None])
    rows = weights.new_full((1,), labels.shape[0])
    counted = (labels != IGNORE_INDEX).sum(dim=(0, 1)).float()
    return torch.cat([counted, weights.sum()[None], rows, has_target(labels).sum()[None]])


def batch_mean(total: Tensor, count: Tensor, rows: int, batch_totals: Tensor | None, column: int) -> Tensor:
    """The microbatch's value of a mean: over the labels of a level, over targets, or over weighted preference rows.

    total: scalar, the sum over the microbatch; exactly 0 where nothing is counted
    count: scalar, the number (or the total weight) of what is averaged in the microbatch
    rows: rows of the microbatch
    batch_totals: (6,) counts of the global batch, or None
    column: the index in `batch_totals` of the same count over the global batch
    """
    if batch_totals is None:
        return total / _one_if_zero(count)
    return total / _one_if_zero(batch_totals[column]) * (batch_totals[ROWS] / rows)


def counted_labels(labels: Tensor, row_mask: Tensor) -> Tensor:
    """Labels (B, T, L) with those of filler rows (row_mask (B,) False) ignored."""
    return labels.masked_fill(~row_mask[:, None, None], IGNORE_INDEX)


def labels_of_outputs(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """The labels that the model's logits or label scores are for: of labels (B, T, L) those of the batch's
    `label_tokens`, (M, L), or all."""
    if "label_tokens" not in batch or "label_slots" in outputs:  # a softmax over the catalogue is computed for all
        return labels
    return labels.flatten(0, 1).index_select(0, batch["label_tokens"])


def has_target(labels: Tensor) -> Tensor:
    """Whether a row has an item to predict, the one after BOS: labels (B, T, L) -> (B,) bool."""
    return (labels[:, 0] != IGNORE_INDEX).all(dim=-1)


def preference_weights(preference_score: Tensor, rejected_mask: Tensor) -> Tensor:
    """The weight (B,) of each row's preference: its score (B,), or 0 if rejected_mask (B, N) has no item."""
    return torch.where(rejected_mask.any(dim=-1), preference_score.float(), 0.0)


def _one_if_zero(count: Tensor) -> Tensor:
    """`count`, or 1 where it is 0, so that an empty sum divided by it is 0. Weights below 1 are unchanged."""
    return torch.where(count > 0, count, 1)
