"""Lets a process run on a fake GPU that computes nothing, where all results of kernels are 0.

Only code that reads such a result and cannot work with a 0 is replaced.
"""

from types import SimpleNamespace

from torch import Tensor

from ugt_composer.model.moe import MoEFeedForward
from ugt_composer.training.callbacks.training_metrics import TrainingMetrics


def accept_zeros() -> None:
    TrainingMetrics._global_means = means_over_no_rows(TrainingMetrics._global_means)  # type: ignore[method-assign]
    MoEFeedForward._dropless = dropless_by_even_counts(MoEFeedForward._dropless)  # type: ignore[method-assign]


def means_over_no_rows(global_means):
    """The number of rows comes from an all-reduce on the device, and the host divides by it."""

    def means(self: TrainingMetrics) -> dict[str, float]:
        try:
            return global_means(self)
        except ZeroDivisionError:
            return {}

    return means


def dropless_by_even_counts(dropless):
    """The host reads how many tokens each expert gets; these counts must add up to all tokens."""

    def even(self: MoEFeedForward, tokens: Tensor, order: Tensor, counts: Tensor) -> Tensor:
        counts.tolist()  # the wait
        rows, pieces = len(order), len(counts)
        sizes = [rows // pieces + (piece < rows % pieces) for piece in range(pieces)]
        return dropless(self, tokens, order, SimpleNamespace(tolist=lambda: sizes))

    return even
