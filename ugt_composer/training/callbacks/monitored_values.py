"""Warns where a metric that selects `best/` or that a callback monitors has no value."""

import logging
import math
from collections.abc import Mapping

from composer import Callback, Logger, State
from composer.utils import dist

from ugt_composer.training.callbacks.checkpoints import EVAL_LABEL

log = logging.getLogger(__name__)


class MonitoredValues(Callback):
    """Logs a warning at the first evaluation in which a metric is NaN, which compares as no improvement.

    Args:
        metrics: names of evaluation metrics, by the key that names each.
    """

    def __init__(self, metrics: Mapping[str, str]):
        self._metrics = dict(metrics)  # those without a warning so far, on all ranks the same

    def eval_end(self, state: State, logger: Logger) -> None:
        for key, name in list(self._metrics.items()):
            if not math.isnan(float(state.eval_metrics[EVAL_LABEL][name].compute())):
                continue
            del self._metrics[key]
            if dist.get_global_rank() == 0:
                log.warning(
                    "%s names %s, which is NaN in the evaluation after batch %d; NaN is never better than another "
                    "value, and none is better than NaN",
                    *(key, name, state.timestamp.batch.value),
                )
