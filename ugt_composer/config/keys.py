"""What a field of the configuration declares beside its type and default: whether it may change when a run resumes."""

from collections.abc import Callable
from dataclasses import MISSING, field
from enum import Enum
from typing import Any


class OnResume(Enum):
    """Whether a key may have another value than in the checkpoint that a run resumes from."""

    FREE = "may change: it decides no number of a training step"
    FIXED = "must not change"
    ON_REQUEST = "may change if resume_despite names it: no shape and no order of samples depends on it"
    ON_REQUEST_UNLESS_ZERO = "as ON_REQUEST, but not between 0 and a value above 0, which trains other weights"


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
        default: its value where no YAML sets it.
        on_resume: None where the section that the field is in declares it for all its keys.
        factory: makes the default, where it is mutable.
        defines_weights: trained weights mean something else with another value, although every shape is the same; a
            model is not loaded with another one.
    """
    metadata = {ON_RESUME: on_resume, DEFINES_WEIGHTS: defines_weights}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)
