"""Gradient clipping by global norm."""

from composer import Algorithm, Event, Logger, State

from ugt_composer.parallelism.strategy import Strategy


class GradientNormClipping(Algorithm):
    """Scales the gradients of a batch so that their norm over all parameters and shards is at most `max_grad_norm`.

    The strategy keeps the norm before clipping; `TrainingMetrics` logs it.
    """

    def __init__(self, strategy: Strategy, max_grad_norm: float):
        self.strategy = strategy
        self.max_grad_norm = max_grad_norm

    def match(self, event: Event, state: State) -> bool:
        return event == Event.AFTER_TRAIN_BATCH

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        self.strategy.clip_gradients(self.max_grad_norm)
