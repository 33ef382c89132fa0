"""Gradient clipping by global norm, with the norm in the log."""

import torch
from composer import Algorithm, Event, Logger, State


class GradientNormClipping(Algorithm):
    """Scales the gradients of a batch so that their norm over all parameters is at most `max_grad_norm`.

    The norm before clipping is logged as `metrics/train/grad_norm`; as a tensor, so that nothing waits for it.
    """

    def __init__(self, max_grad_norm: float):
        self.max_grad_norm = max_grad_norm

    def match(self, event: Event, state: State) -> bool:
        return event == Event.AFTER_TRAIN_BATCH

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), self.max_grad_norm)
        logger.log_metrics({"metrics/train/grad_norm": norm})
