"""A loss that is no number ends the run before it reaches a checkpoint."""

import math

from composer import Callback, Logger, State

FP16_PATIENCE = 20  # batches in a row; loss scaling skips the steps that overflow and finds a smaller scale


class FiniteLoss(Callback):
    """Raises on a NaN or infinite loss: the weights are lost from that step on, and the last checkpoint is good."""

    def __init__(self, scales_loss: bool):
        self.patience = FP16_PATIENCE if scales_loss else 1
        self.bad_in_a_row = 0

    def batch_end(self, state: State, logger: Logger) -> None:
        loss = state.total_loss_dict["loss/train/total"]  # on the host already: Composer logs it
        self.bad_in_a_row = 0 if math.isfinite(loss) else self.bad_in_a_row + 1
        if self.bad_in_a_row >= self.patience:
            raise RuntimeError(
                f"the loss of batch {state.timestamp.batch.value} is {loss}; the newest checkpoint is from before. "
                "See metrics/train/grad_norm in metrics.jsonl; try precision=fp32, a smaller optimizer.lr or "
                "max_grad_norm"
            )
