"""The callbacks that `callbacks` in the YAML adds: Composer's, and a user's own by import path."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import composer.callbacks
from composer import Callback

from ugt_composer.config.user_classes import ClassWithArguments, classes_of
from ugt_composer.errors import UserError
from ugt_composer.training.best_metric import Evaluated
from ugt_composer.training.callbacks.checkpoints import EVAL_LABEL

# Composer's callbacks that do not work here, and why.
REFUSED: dict[type[Callback], str] = {
    composer.callbacks.CheckpointSaver: "checkpoints are written every save_interval",
    composer.callbacks.LoadCheckpoint: "a run resumes by itself, and starts from init_from",
    composer.callbacks.ActivationMonitor: "it supports only modules that take and return tensors",
    composer.callbacks.Generate: "it generates text",
    composer.callbacks.ImageVisualizer: "it shows batches of images",
}
# Composer's callbacks that monitor metrics. Of training there are none: its values are logged with the losses.
STOPPERS = (composer.callbacks.EarlyStopper, composer.callbacks.ThresholdStopper)


def composer_callbacks() -> dict[str, type[Callback]]:
    """Composer's callbacks by their names in the YAML, such as {"speed_monitor": SpeedMonitor}."""
    classes = [
        kind for _, kind in inspect.getmembers(composer.callbacks, inspect.isclass) if issubclass(kind, Callback)
    ]
    return {_snake_case(kind.__name__): kind for kind in classes}


def configured_callbacks(callbacks: Mapping[str, Any]) -> list[ClassWithArguments]:
    """The classes that `callbacks` names, with checked arguments. UserError for an unknown name or argument."""
    classes = classes_of("callbacks", callbacks, Callback, composer_callbacks())
    for callback in classes:
        if callback.kind in REFUSED:
            raise UserError(f"{callback.key} cannot be used: {REFUSED[callback.kind]}")
    return classes


def monitored_metrics(callbacks: Sequence[ClassWithArguments], evaluated: Evaluated | None) -> dict[str, str]:
    """The names of the evaluation metrics that callbacks monitor, by key, checked.

    Args:
        evaluated: None: the run has no evaluations.

    Raises:
        UserError: a callback's `monitor` or `dataloader_label` does not exist, or no evaluation gives it a value.
    """
    metrics = {}
    for callback in callbacks:
        label, monitor = callback.arguments.get("dataloader_label"), callback.arguments.get("monitor")
        if monitor is None or (label == "train" and not issubclass(callback.kind, STOPPERS)):
            continue
        if label != EVAL_LABEL:
            raise UserError(
                f"{callback.key}.dataloader_label is {label!r}; expected {EVAL_LABEL}, whose metrics can be monitored"
            )
        if evaluated is None:
            raise UserError(
                f"{callback.key} monitors {monitor!r} of the evaluations, but data.eval is empty; expected a folder "
                f"there, or {callback.key}=false"
            )
        key = f"{callback.key}.monitor"
        evaluated.check_name(key, monitor)
        evaluated.check_rows(key, monitor)
        metrics[key] = monitor
    return metrics


def _snake_case(name: str) -> str:
    """SpeedMonitor → speed_monitor, OOMObserver → oom_observer, NaNMonitor → nan_monitor."""
    words = re.sub(r"NaN", "Nan", name)
    words = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", words)
    return re.sub(r"([a-z\d])([A-Z])", r"\1_\2", words).lower()
