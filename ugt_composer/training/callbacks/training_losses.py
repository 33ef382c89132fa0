"""Logs training losses, which stay on the device until a log line or a checkpoint needs them."""

import math
from collections.abc import Mapping

import torch
from composer import Callback, Logger, State
from composer.utils import dist
from torch import Tensor

from ugt_composer.training.intervals import Every

FP16_PATIENCE = 20  # batches in a row; loss scaling skips the steps that overflow and finds a smaller scale
MOST_UNREAD = 100  # batches
TOTAL = "loss/train/total"


class TrainingLosses(Callback):
    """Logs `loss/train/*`, and ends the run on a NaN or infinite loss before the weights reach a checkpoint.

    Composer reads the losses of each batch, and waits until the device has computed them. Here all losses are read at
    once when a log line is due, with the total losses of the batches since the last one; these also before each save.

    Args:
        log_interval: when the losses are logged, in addition to the first batch.
        scales_loss: whether a scaler may find a smaller scale after a few batches that overflow.
    """

    def __init__(self, log_interval: str, scales_loss: bool):
        self.every = Every(log_interval)
        self.patience = FP16_PATIENCE if scales_loss else 1
        self._losses: Mapping[str, Tensor] = {}
        self._unread: list[tuple[int, Tensor]] = []  # batch, and its total loss
        self._bad_in_a_row = 0

    def keep(self, batch: int, losses: Mapping[str, Tensor]) -> None:
        """Takes the losses of a batch: this rank's, each a tensor of one element."""
        self._losses = losses
        self._unread.append((batch, losses[TOTAL]))

    def batch_end(self, state: State, logger: Logger) -> None:
        due = self.every.is_logged(state)
        if due or len(self._unread) >= MOST_UNREAD:
            self.check()
        if due and self._losses:
            logger.log_metrics(dict(zip(self._losses, _means(list(self._losses.values())), strict=True)))

    def check(self) -> None:
        """Reads the total losses that were not read yet. A collective.

        Raises:
            RuntimeError: on a NaN or infinite loss: the weights are lost from that step on.
        """
        unread, self._unread = self._unread, []
        for (batch, _), loss in zip(unread, _means([loss for _, loss in unread]), strict=True):
            self._bad_in_a_row = 0 if math.isfinite(loss) else self._bad_in_a_row + 1
            if self._bad_in_a_row >= self.patience:
                raise RuntimeError(
                    f"the loss of batch {batch} is {loss}; the newest checkpoint is from an earlier batch. See "
                    "metrics/train/grad_norm in metrics.jsonl; try precision=fp32, a smaller optimizer.lr or "
                    "max_grad_norm"
                )


def _means(values: list[Tensor]) -> list[float]:
    """Over the ranks."""
    if not values:
        return []
    sums = torch.cat([value.detach().reshape(1) for value in values])
    dist.all_reduce(sums, reduce_operation="SUM")
    return [value / dist.get_world_size() for value in sums.tolist()]
