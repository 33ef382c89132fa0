"""Gradient clipping by global norm, with the norm in the log."""

from typing import Any

from composer import Algorithm, Event, Logger, State

from ugt_composer.parallelism.strategy import Strategy


class GradientNormClipping(Algorithm):
    """Scales the gradients of a batch so that their norm over all parameters and shards is at most `max_grad_norm`.

    The norm before clipping is logged as `metrics/train/grad_norm`; as a tensor, so that nothing waits for it, and
    after the step: a DeepSpeed engine knows it only then.
    """

    def __init__(self, strategy: Strategy, max_grad_norm: float):
        self.strategy = strategy
        self.max_grad_norm = max_grad_norm

    def match(self, event: Event, state: State) -> bool:
        return event in (Event.AFTER_TRAIN_BATCH, Event.BATCH_END)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.AFTER_TRAIN_BATCH:
            self.strategy.clip_gradients(self.max_grad_norm)
        else:
            values: dict[str, Any] = {"metrics/train/grad_norm": self.strategy.gradient_norm()}
            logger.log_metrics(values)
