"""Metadata of the configuration's fields: whether a key may change when a run resumes, whether it defines weights."""

from collections.abc import Callable
from dataclasses import MISSING, field
from enum import Enum
from typing import Any


class OnResume(Enum):
    """Whether a key may have a different value than in the checkpoint that a run resumes from."""

    FREE = "may change: no number of a training step depends on it"
    FIXED = "must not change"
    ON_REQUEST = "may change if resume_despite names it: no shape and no order of samples depends on it"
    ON_REQUEST_UNLESS_ZERO = "as ON_REQUEST, but not from or to 0, which would train other weights"


FREE, FIXED = OnResume.FREE, OnResume.FIXED
ON_REQUEST, ON_REQUEST_UNLESS_ZERO = OnResume.ON_REQUEST, OnResume.ON_REQUEST_UNLESS_ZERO
ON_RESUME, DEFINES_WEIGHTS = "on_resume", "defines_weights"  # names in a field's metadata


def key(
    default: Any = MISSING,
    on_resume: OnResume | None = None,
    *,
    factory: Callable[[], Any] | None = None,
    defines_weights: bool = False,
) -> Any:
    """A dataclass field of the configuration.

    Args:
        default: its value if no YAML sets it.
        on_resume: None if the section that contains the field declares it for all keys.
        factory: creates the default if it is mutable.
        defines_weights: trained weights have another meaning with another value, although every shape is the same: a
            model is not loaded with a different one.
    """
    metadata = {ON_RESUME: on_resume, DEFINES_WEIGHTS: defines_weights}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)
