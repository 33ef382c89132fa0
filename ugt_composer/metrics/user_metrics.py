"""Metrics of a user's own in the evaluation: `evaluation.metrics` names them by import path.

Such a metric is a `torchmetrics.Metric` whose `update` takes, for B rows, K = max(evaluation.k_values)
recommendations, T targets and 3 levels:

    recommended  int64 (B, K, 3)  semantic IDs, the best first; 0, 0, 0 where there are fewer
    targets      int64 (B, T, 3)  the items that followed
    target_mask  bool  (B, T)     False where there is no target
    row_mask     bool  (B,)       False for rows that do not count: padding, and pairs of a preference

Rows that do not count are masked and not left out, so that nothing waits for the device. Its state is reduced over
ranks as `add_state` says. It is logged as `metrics/eval/{name of the class}`, and `save_best_on` may name it where the
class sets `higher_is_better`.
"""

from collections.abc import Mapping
from typing import Any

from torchmetrics import Metric

from ugt_composer.config.user_classes import ClassWithArguments, classes_of
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
