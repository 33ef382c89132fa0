"""What selects `best/`, and whether the value of an earlier start of the run can be compared with a new one."""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torchmetrics import Metric

from ugt_composer.checkpoint.portable import WEIGHTS
from ugt_composer.config.schema import Config
from ugt_composer.metrics.torch_metrics import EvaluationMetric

SAVE_BEST_ON = "save_best_on"  # a fact in a model's header


@dataclass(frozen=True)
class Criterion:
    """
    Attributes:
        metric: `save_best_on`.
        higher_is_better: of the metric; None: the version that selected the model did not record it.
        settings: by key, whatever else the metric's value depends on; what a record lacks counts as unchanged.
    """

    metric: str
    higher_is_better: bool | None
    settings: dict[str, str]

    def change_from(self, before: "Criterion") -> str | None:
        """What makes values of this criterion and of an earlier one incomparable; None if they can be compared."""
        if self.metric != before.metric:
            return f"save_best_on was {before.metric}, now it is {self.metric}"
        if before.higher_is_better not in (None, self.higher_is_better):
            better = {True: "higher", False: "lower"}
            return (
                f"{self.metric} was better when {better[bool(before.higher_is_better)]}, now it is better when "
                f"{better[bool(self.higher_is_better)]}"
            )
        changes = [
            f"{key} was {before.settings[key]}, now it is {value}"
            for key, value in self.settings.items()
            if before.settings.get(key, value) != value
        ]
        return "; ".join(changes) or None

    @property
    def facts(self) -> dict[str, str]:
        """The form that a model's header has."""
        return {SAVE_BEST_ON: self.metric, "higher_is_better": str(self.higher_is_better).lower()}


@dataclass(frozen=True)
class Best:
    """The value by which `best/` was selected.

    Attributes:
        fulfils: whether the model fulfils `save_best_if`; False only for the model that the run started from.
    """

    value: float
    criterion: Criterion
    fulfils: bool = True

    def state_dict(self) -> dict[str, Any]:
        criterion = self.criterion
        return {
            "value": self.value,
            "metric": criterion.metric,
            "higher_is_better": criterion.higher_is_better,
            "settings": dict(criterion.settings),
            "fulfils": self.fulfils,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Best":
        criterion = Criterion(state["metric"], state["higher_is_better"], state["settings"])
        return cls(state["value"], criterion, state.get("fulfils", True))  # earlier versions did not write it


class SavedBest(NamedTuple):
    """What the header of a model in `best/` says that an evaluation selected."""

    batch: int
    metric: str
    value: float


def value_fact(metric: str) -> str:
    """The name in the header of the value by which the metric selected the model."""
    return f"best {metric}"


def saved_best(folder: Path) -> SavedBest | None:
    """Of `best/`. None if it does not exist or no evaluation selected it. Reads only the header and checks nothing."""
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            facts = file.metadata() or {}
        metric = facts[SAVE_BEST_ON]
        return SavedBest(int(facts["batch"]), metric, float(facts[value_fact(metric)]))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def is_better(value: float, best: float | None, higher_is_better: bool) -> bool:
    """Whether a value is better than the best one so far; NaN never is."""
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value > best if higher_is_better else value < best


def criterion_of(
    config: Config, name: str, metric: Metric, data: list[str], catalogue: str | None, retired: str = "none"
) -> Criterion:
    """A metric as the criterion of `save_best_on` or `save_best_if`.

    Args:
        name, metric: what the key names.
        data: hashes that identify the rows of `data.eval`.
        catalogue: fingerprint of `data.catalogue`; None without one.
        retired: its `retired_set`.
    """
    evaluation = config.evaluation
    settings: dict[str, Any] = {
        "data.eval": ", ".join(sorted(rows.removeprefix("xxh3_128:")[:12] for rows in data)),
        "data.catalogue": "none" if catalogue is None else catalogue[:12],
    }
    if isinstance(metric, EvaluationMetric) and name in metric.sums.losses:
        settings |= {f"loss.{key}": value for key, value in config.loss.arguments.items()}
        settings["loss.reference_from"] = config.loss.reference_from
        if config.loss.uses_group:  # the groups are drawn from the items that are not retired
            settings["retired items"] = retired
    elif name != "preference_accuracy":
        settings |= {
            f"evaluation.{field.name}": getattr(evaluation, field.name)
            for field in fields(evaluation)
            if field.name not in ("k_values", "metrics")
        }
        settings["retired items"] = retired
        if "@" not in name:  # computed from all recommendations, and not from those before a cut-off
            settings["the largest of evaluation.k_values"] = max(evaluation.k_values)
    if not isinstance(metric, EvaluationMetric):
        settings |= {
            f"evaluation.metrics.{path}": arguments or {}
            for path, arguments in evaluation.metrics.items()
            if path.rpartition(".")[2] == name
        }
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return Criterion(name, bool(metric.higher_is_better), texts)
