"""Checks of the names of evaluation metrics in a config: `save_best_on`, `save_best_if`, and what callbacks monitor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchmetrics import Metric

from ugt_composer.config.best_condition import parse_best_condition
from ugt_composer.config.schema import Config
from ugt_composer.errors import UserError, nearest
from ugt_composer.jsonl.schema import PREFERENCE, RECOMMEND
from ugt_composer.metrics.torch_metrics import EvaluationMetric

PREFIX = "metrics/eval/"  # of the names in metrics.jsonl


@dataclass(frozen=True)
class Evaluated:
    """What the evaluations of a run compute.

    Attributes:
        metrics: by name.
        not_computed: the key of `loss.*` that is 0, by each metric that is absent because of it.
        kinds: of the rows of each folder of `data.eval`; None: not known, because one has not been downloaded.
    """

    metrics: Mapping[str, Metric]
    not_computed: Mapping[str, str]
    kinds: Sequence[str] | None

    def check_name(self, key: str, name: str) -> None:
        """Raises UserError, with the reason or the nearest name, if `name` is not one of the metrics."""
        if name in self.metrics:
            return
        if (short := name.removeprefix(PREFIX)) in self.metrics:
            raise UserError(f"{key} is {name!r}; expected {short}, without {PREFIX}")
        if (off := self.not_computed.get(short)) is not None:
            raise UserError(
                f"{key} is {name!r}, which is not computed, because loss.{off} is 0; expected another metric, such as "
                f"loss, or loss.{off} above 0"
            )
        raise UserError(f"{key} is {name!r}; {nearest(short, list(self.metrics))}")

    def check_rows(self, key: str, name: str) -> None:
        """Raises UserError if a metric has no value, because `data.eval` has no rows that it is computed from."""
        if missing := self.missing_rows(name):
            raise UserError(
                f"{key} names {name!r}, which is computed from {missing} rows, but data.eval has none; expected "
                "another metric, such as loss, or a folder with such rows"
            )

    def missing_rows(self, name: str) -> str | None:
        """The kind of rows that a metric is computed from, if `data.eval` is known to have none; else None."""
        metric = self.metrics[name]
        if self.kinds is None or not isinstance(metric, EvaluationMetric):
            return None
        needed = {RECOMMEND: metric.sums.is_of_ranking(name), PREFERENCE: metric.sums.is_of_pairs(name)}
        return next((kind for kind, is_needed in needed.items() if is_needed and kind not in self.kinds), None)


def check_best_metrics(config: Config, evaluated: Evaluated) -> None:
    """Raises UserError if `save_best_on` or `save_best_if` cannot select a model."""
    if config.save_best_on is None:
        return
    _check_best_metric("save_best_on", config.save_best_on, evaluated)
    evaluated.check_rows("save_best_on", config.save_best_on)
    if config.save_best_if is not None:
        condition = parse_best_condition(config.save_best_if)
        _check_best_metric("save_best_if", condition.metric, evaluated)
        higher = evaluated.metrics[condition.metric].higher_is_better
        if higher != condition.is_lower_bound:
            raise UserError(
                f"save_best_if is {config.save_best_if!r}, but {'higher' if higher else 'lower'} values of "
                f"{condition.metric} are better; expected {'>=' if higher else '<='}"
            )


def why_condition_is_unused(config: Config, evaluated: Evaluated | None) -> str | None:
    """Why `save_best_if` has no effect; None if it has one or is not given.

    Args:
        evaluated: None: the run has no evaluations.
    """
    if config.save_best_if is None:
        return None
    if evaluated is None or config.save_best_on is None:
        reason = "save_best_on is null" if config.save_best_on is None else "data.eval is empty"
        return f"{reason}: best/ will be the latest model"
    name = parse_best_condition(config.save_best_if).metric
    missing = evaluated.missing_rows(name)
    return missing and f"{name} is computed from {missing} rows, of which data.eval has none"


def _check_best_metric(key: str, name: str, evaluated: Evaluated) -> None:
    """Raises UserError if a key does not name a metric of the evaluation, or one that does not set
    `higher_is_better`."""
    evaluated.check_name(key, name)
    if evaluated.metrics[name].higher_is_better is None:
        raise UserError(
            f"{key} names {name!r}, whose class does not set higher_is_better; set it to True or False there"
        )
