"""The exponential moving average (EMA) of the weights: `ema_decay`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from composer import Callback, Logger, State

from ugt_composer.parallelism.strategy import Strategy


class WeightAverage(Callback):
    """Keeps the average of the weights after each step t, weighted by decay^(T - t) and so without bias towards the
    start, as Adam corrects its moments (Kingma and Ba, arXiv 1412.6980, section 3). Evaluations run with the average.

    Each rank keeps the average of its own part of the trainable weights, in float32.

    Args:
        strategy: has the weights.
        decay: of the weights before, per batch; above 0, below 1.
    """

    def __init__(self, strategy: Strategy, decay: float):
        self.strategy = strategy
        self.decay = decay
        self.take_weights()

    @property
    def names(self) -> list[str]:
        """Of the weights that are averaged."""
        return list(self._averages)

    @torch.no_grad()
    def take_weights(self) -> None:
        """Sets the averages to the model's weights."""
        self._averages = {name: weight.clone() for name, weight in self.strategy.trainable_parts()}
        self._is_in_model = False  # whether model and averages have exchanged their values

    def fit_start(self, state: State, logger: Logger) -> None:
        self._exchange(in_model=False)  # after an evaluation that was interrupted

    @torch.no_grad()
    def batch_end(self, state: State, logger: Logger) -> None:
        steps = state.timestamp.batch.value  # Composer has counted this batch
        fraction = (1 - self.decay) / (1 - self.decay**steps)
        weights = dict(self.strategy.trainable_parts())
        torch._foreach_lerp_([self._averages[name] for name in weights], list(weights.values()), fraction)

    def eval_start(self, state: State, logger: Logger) -> None:
        self._exchange(in_model=True)

    def eval_end(self, state: State, logger: Logger) -> None:
        self._exchange(in_model=False)

    @contextmanager
    def in_model(self, wanted: bool = True) -> Iterator[None]:
        """Within it, the model has the averages; or with False, the weights that are trained, also in an evaluation."""
        before = self._is_in_model
        self._exchange(wanted)
        try:
            yield
        finally:
            self._exchange(before)

    @torch.no_grad()
    def _exchange(self, in_model: bool) -> None:
        if self._is_in_model == in_model:
            return
        for name, weight in self.strategy.trainable_parts():
            average = self._averages[name]
            trained = weight.clone()
            weight.copy_(average)
            average.copy_(trained)
        self._is_in_model = in_model
