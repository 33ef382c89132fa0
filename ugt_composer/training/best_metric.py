"""Checks of the names of evaluation metrics in a config: `save_best_on`, and what callbacks monitor."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torchmetrics import Metric

from ugt_composer.config.best_condition import parse_best_condition
from ugt_composer.config.schema import Config
from ugt_composer.errors import UserError, nearest
from ugt_composer.jsonl.schema import PREFERENCE, RECOMMEND
from ugt_composer.metrics.torch_metrics import EvaluationMetric

if TYPE_CHECKING:
    from ugt_composer.training.composer_model import ComposerUGT

PREFIX = "metrics/eval/"  # of the names in metrics.jsonl


def check_metric_name(key: str, name: str, metrics: Mapping[str, Metric], not_computed: Mapping[str, str]) -> None:
    """Raises UserError, with the reason or the nearest name, if `name` is not one of the metrics of the evaluation.

    Args:
        not_computed: the key of `loss.*` that is 0, by each metric that is absent because of it.
    """
    if name in metrics:
        return
    if (short := name.removeprefix(PREFIX)) in metrics:
        raise UserError(f"{key} is {name!r}; expected {short}, without {PREFIX}")
    if short in not_computed:
        raise UserError(
            f"{key} is {name!r}, which is not computed, because loss.{not_computed[short]} is 0; expected another "
            f"metric, such as loss, or loss.{not_computed[short]} above 0"
        )
    raise UserError(f"{key} is {name!r}; {nearest(short, list(metrics))}")


def check_best_metrics(config: Config, model: "ComposerUGT", kinds: Sequence[str]) -> None:
    """Raises UserError if `save_best_on` or `save_best_if` cannot select a model.

    Args:
        kinds: of the rows of each folder of `data.eval`.
    """
    if config.save_best_on is None:
        return
    _check_best_metric("save_best_on", config.save_best_on, model)
    if missing := missing_rows(config.save_best_on, model, kinds):
        raise UserError(
            f"save_best_on names {config.save_best_on!r}, which is computed from {missing} rows, but data.eval has "
            "none; expected another metric, such as loss, or a folder with such rows"
        )
    if config.save_best_if is not None:
        condition = parse_best_condition(config.save_best_if)
        _check_best_metric("save_best_if", condition.metric, model)
        higher = model.get_metrics(is_train=False)[condition.metric].higher_is_better
        if higher != condition.is_lower_bound:
            raise UserError(
                f"save_best_if is {config.save_best_if!r}, but {'higher' if higher else 'lower'} values of "
                f"{condition.metric} are better; expected {'>=' if higher else '<='}"
            )


def missing_rows(name: str, model: "ComposerUGT", kinds: Sequence[str]) -> str | None:
    """The kind of rows that a metric is computed from, if none of these kinds is; None: it can be computed."""
    metric = model.get_metrics(is_train=False)[name]
    if not isinstance(metric, EvaluationMetric):
        return None
    needed = {RECOMMEND: metric.sums.is_of_ranking(name), PREFERENCE: metric.sums.is_of_pairs(name)}
    return next((kind for kind, is_needed in needed.items() if is_needed and kind not in kinds), None)


def _check_best_metric(key: str, name: str, model: "ComposerUGT") -> None:
    """Raises UserError if a key does not name a metric of the evaluation, or one that does not set
    `higher_is_better`."""
    metrics = model.get_metrics(is_train=False)
    check_metric_name(key, name, metrics, model.unified_loss.not_computed)
    metric = metrics[name]
    if metric.higher_is_better is None:
        raise UserError(
            f"{key} names {name!r}, whose class does not set higher_is_better; set it to True or False there"
        )
