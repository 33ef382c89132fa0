"""Metrics of a user's own in the evaluation: `evaluation.metrics` names them by import path.

Such a metric is a `torchmetrics.Metric` whose `update` takes, for B rows, K = max(evaluation.k_values)
recommendations, T targets and 3 levels:

    recommended  int64 (B, K, 3)  semantic IDs, the best first; 0, 0, 0 where there are fewer
    targets      int64 (B, T, 3)  the items that followed
    target_mask  bool  (B, T)     False where there is no target
    row_mask     bool  (B,)       False for rows that do not count: fillers, and pairs of a preference

Rows that do not count are masked and not left out, so that nothing waits for the device. Its state is reduced over
ranks as `add_state` says. It is logged as `metrics/eval/{name of the class}`, and `save_best_on` may name it where the
class sets `higher_is_better`.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torchmetrics import Metric

from ugt_composer.config.user_classes import ClassWithArguments, classes_of, described
from ugt_composer.errors import UserError


def user_metrics(metrics: Mapping[str, Any]) -> list[ClassWithArguments]:
    """What `evaluation.metrics` names, checked but not made.

    Raises:
        UserError: an unknown class or argument, with the nearest one; two classes of the same name.
    """
    classes = classes_of("evaluation.metrics", metrics, Metric, {})  # type: ignore[type-abstract]
    names = [one.kind.__name__ for one in classes]
    for one in classes:
        if names.count(one.kind.__name__) > 1:
            raise UserError(
                f"{one.key}: two metrics would be logged as {one.kind.__name__}; expected different classes"
            )
    return classes


def build_user_metrics(metrics: Mapping[str, Any], k: int, taken: Collection[str]) -> dict[str, Metric]:
    """The metrics of `evaluation.metrics` by the names that they are logged by, each tried on a batch of one row.

    Args:
        k: recommendations of a row.
        taken: names of the evaluation's other metrics.

    Raises:
        UserError: as `user_metrics`; a class cannot be created, updated or computed, or has a name that is taken.
    """
    built = {}
    for metric in user_metrics(metrics):
        name = metric.kind.__name__
        if name in taken:
            raise UserError(f"{metric.key}: {name} is a metric of every evaluation; expected another class name")
        _try(metric, k)
        built[name] = metric.make()
    return built


def _try(metric: ClassWithArguments, k: int) -> None:
    """UserError if a metric does not take a batch, or gives something other than a number."""
    one = metric.make()
    recommended = torch.arange(5, 5 + k).view(1, k, 1).expand(1, k, 3)
    try:
        one.distributed_available_fn = lambda: False  # this row is not one of the evaluation: nothing is summed
        one.update(recommended, recommended[:, :1], torch.ones(1, 1, dtype=torch.bool), torch.ones(1, dtype=torch.bool))
        float(one.compute())
    except Exception as error:  # the class is the user's own
        raise UserError(
            f"{metric.key}: fails on a batch of one row: {described(error)}; see ugt_composer/metrics/user_metrics.py "
            "for what update gets, and let compute return one number"
        ) from error
