"""Evaluates the model that a run starts from, if `save_best_if` needs its values."""

from collections.abc import Callable

from composer import Callback, Logger, State
from composer.utils import reproducibility

from ugt_composer.training.best_guard import BestGuard


class StartEvaluation(Callback):
    """Runs an evaluation before the first batch. Training continues with the random state from before it, so that its
    losses are those of a run without it.

    Args:
        evaluate: runs the evaluation, and what follows it.
    """

    def __init__(self, guard: BestGuard, evaluate: Callable[[], None]):
        self.guard = guard
        self.evaluate = evaluate

    def fit_start(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == 0 and self.guard.needs_start and state.evaluators:
            before = reproducibility.get_rng_state()
            self.evaluate()
            reproducibility.load_rng_state(before)
