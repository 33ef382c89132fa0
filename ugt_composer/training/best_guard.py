"""`save_best_if`: which evaluations may select `best/`, and when a run ends because none does."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ugt_composer.config.best_condition import BestCondition
from ugt_composer.errors import UserError
from ugt_composer.training.best_model import Criterion


@dataclass(frozen=True)
class Start:
    """The evaluation before the first batch.

    Attributes:
        values: of all metrics that rows count for.
        settings: what they depend on, see `Criterion.settings`.
    """

    values: dict[str, float]
    settings: dict[str, str]


class BestGuard:
    """Compares evaluations with the one before the first batch. All ranks come to the same result.

    Args:
        condition: None: every evaluation may select `best/`.
        criterion: of the condition's metric: what its values depend on.
        settings: what the values of all metrics depend on, see `Criterion.settings`.
        patience: the run ends when so many evaluations in a row do not fulfil the condition; None: it does not.

    Attributes:
        start: None if it was not evaluated.
    """

    def __init__(
        self,
        condition: BestCondition | None = None,
        criterion: Criterion | None = None,
        settings: Mapping[str, str] | None = None,
        patience: int | None = None,
    ):
        self.condition = condition
        self.criterion = criterion
        self.settings = dict(settings or {})
        self.patience = patience
        self.start: Start | None = None
        self._failed_in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        return {"start": None if self.start is None else asdict(self.start), "failed_in_a_row": self._failed_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = None if state["start"] is None else Start(**state["start"])
        self._failed_in_a_row = state["failed_in_a_row"]

    @property
    def needs_start(self) -> bool:
        return self.condition is not None and self.start is None

    @property
    def is_hopeless(self) -> bool:
        return self.condition is not None and self.patience is not None and self._failed_in_a_row >= self.patience

    def resume(self) -> str | None:
        """To be called when a run resumes. Returns a warning if the condition has no effect, because the run began
        without one.

        Raises:
            UserError: values of the condition's metric cannot be compared with the one at the start.
        """
        if self.condition is None or self.criterion is None:
            return None
        metric = self.condition.metric
        if self.start is None:
            self.condition = None
            return (
                "save_best_if has no effect in this run, which began without it, so that no evaluation before the "
                "first batch exists; a new run in another save_folder has one"
            )
        before = Criterion(metric, self.criterion.higher_is_better, self.start.settings)
        problem = self.criterion.change_from(before)
        if metric not in self.start.values:
            problem = f"{metric} was not computed then"
        if problem is not None:
            raise UserError(
                f"save_best_if compares {metric} with its value at the start of the run, which cannot be compared any "
                f"more ({problem}); set that back, set save_best_if=null, or use another save_folder"
            )
        return None

    def begin(self, values: Mapping[str, float]) -> None:
        """Takes the evaluation before the first batch."""
        self.start = Start({name: value for name, value in values.items() if math.isfinite(value)}, self.settings)

    def allows(self, values: Mapping[str, float]) -> bool:
        """Whether values fulfil the condition."""
        if self.condition is None:
            return True
        return self.condition.holds(values[self.condition.metric], self._start_of(self.condition.metric))

    def count(self, is_allowed: bool) -> None:
        """Counts an evaluation after the first batch."""
        self._failed_in_a_row = 0 if is_allowed else self._failed_in_a_row + 1

    def comparison(self, batch: int, best_metric: str, values: Mapping[str, float], outcome: str) -> str:
        """One line: how the metric that selects and the condition's have changed since the start."""
        assert self.condition is not None
        metric = self.condition.metric
        before, now = self._start_of(metric), values[metric]
        change = f" ({100 * (now - before) / abs(before):+.1f} %)" if before else ""
        gain = f"{best_metric} {self._start_of(best_metric):.4f} → {values[best_metric]:.4f}, "
        return (
            f"batch {batch}: {gain if best_metric != metric else ''}{metric} {before:.4f} → {now:.4f}{change}, "
            f"{self.condition.limit_in_words}: {outcome}"
        )

    def about_end(self) -> str:
        """Why a hopeless run ends."""
        assert self.condition is not None
        start = self._start_of(self.condition.metric)
        return (
            f"{self._failed_in_a_row} evaluations in a row did not fulfil save_best_if ({self.condition.text}: "
            f"{self.condition.limit(start):.4g}), and save_best_patience is {self.patience}"
        )

    def _start_of(self, metric: str) -> float:
        assert self.start is not None
        return self.start.values.get(metric, math.nan)
