"""Training metrics, read from the device only when a log line is due."""

import time

import torch
from composer import Callback, Logger, State
from composer.utils import dist

from ugt_composer.parallelism.strategy import Strategy
from ugt_composer.training.composer_model import ComposerUGT
from ugt_composer.training.intervals import Every


class TrainingMetrics(Callback):
    """Logs `metrics/train/*`: the losses' own metrics over the global batch, the norm of the gradients before
    clipping, learning rate and rows per second."""

    def __init__(self, model: ComposerUGT, strategy: Strategy, log_interval: str):
        self.model = model
        self.strategy = strategy
        self.every = Every(log_interval)
        self.window_start = time.monotonic()
        self.window_rows = 0

    def fit_start(self, state: State, logger: Logger) -> None:
        self.window_start, self.window_rows = time.monotonic(), 0

    def before_train_batch(self, state: State, logger: Logger) -> None:
        self.model.step_metrics, self.model.step_rows = {}, 0

    def batch_end(self, state: State, logger: Logger) -> None:
        assert state.previous_timestamp is not None
        self.window_rows += state.timestamp.sample.value - state.previous_timestamp.sample.value
        if not self.every.is_logged(state):
            return
        values = {
            "grad_norm": float(self.strategy.gradient_norm()),
            "learning rate": state.schedulers[0].get_last_lr()[0],
            "samples/s": self.window_rows / max(time.monotonic() - self.window_start, 1e-9),
            **self._global_means(),
        }
        logger.log_metrics({f"metrics/train/{name}": value for name, value in values.items()})
        self.window_start, self.window_rows = time.monotonic(), 0

    def eval_end(self, state: State, logger: Logger) -> None:
        self.window_start, self.window_rows = time.monotonic(), 0  # evaluation does not count as training time

    def _global_means(self) -> dict[str, float]:
        """The step's metrics averaged over microbatches and ranks by their rows."""
        names = sorted(self.model.step_metrics)
        if not names:
            return {}
        sums = torch.stack([self.model.step_metrics[name].float() for name in names])
        sums = torch.cat((sums, sums.new_full((1,), float(self.model.step_rows))))
        dist.all_reduce(sums, reduce_operation="SUM")
        *values, rows = sums.tolist()
        return {name: value / rows for name, value in zip(names, values, strict=True)}
