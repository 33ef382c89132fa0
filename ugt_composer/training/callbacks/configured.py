"""The callbacks that `callbacks` in the YAML adds: Composer's, and a user's own by import path."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import composer.callbacks
from composer import Callback

from ugt_composer.config.user_classes import ClassWithArguments, classes_of
from ugt_composer.errors import UserError

# Composer's callbacks that would write or read other checkpoints than the run's own, which a resumed run needs.
REPLACED = {
    "checkpoint_saver": "checkpoints are written every save_interval",
    "load_checkpoint": "a run resumes by itself, and starts from init_from",
}


def composer_callbacks() -> dict[str, type[Callback]]:
    """Composer's callbacks by their names in the YAML, such as {"speed_monitor": SpeedMonitor}."""
    classes = [
        kind for _, kind in inspect.getmembers(composer.callbacks, inspect.isclass) if issubclass(kind, Callback)
    ]
    return {_snake_case(kind.__name__): kind for kind in classes}


def configured_callbacks(callbacks: Mapping[str, Any]) -> list[ClassWithArguments]:
    """The classes that `callbacks` names, with checked arguments. UserError for an unknown name or argument."""
    for name, instead in REPLACED.items():
        if callbacks.get(name):
            raise UserError(f"callbacks.{name} cannot be used: {instead}")
    known = {name: kind for name, kind in composer_callbacks().items() if name not in REPLACED}
    return classes_of("callbacks", callbacks, Callback, known)


def _snake_case(name: str) -> str:
    """SpeedMonitor → speed_monitor, OOMObserver → oom_observer, NaNMonitor → nan_monitor."""
    words = re.sub(r"NaN", "Nan", name)
    words = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", words)
    return re.sub(r"([a-z\d])([A-Z])", r"\1_\2", words).lower()
