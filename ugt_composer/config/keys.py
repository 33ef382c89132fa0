"""Metadata of the configuration's fields: bounds and units, and whether a key may change when a run resumes.

Sections check their values against these bounds (`config/checks.py`), and `docs/configuration_page.py` prints them.
"""

import math
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
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
# Names in a field's metadata.
ON_RESUME, DEFINES_WEIGHTS, BOUNDS, UNIT = "on_resume", "defines_weights", "bounds", "unit"


@dataclass(frozen=True)
class Bounds:
    """Bounds of a finite number, or of each number of a list; null is always accepted.

    Attributes:
        above, least: a value is above the first, and at least the second.
        below, most: a value is below the first, and at most the second.
        also: accepted besides.
        count: of the numbers of a list; None for any.
        wanted: what messages say of them, if not only the numbers.
    """

    above: float = -math.inf
    least: float = -math.inf
    below: float = math.inf
    most: float = math.inf
    also: float | None = None
    count: int | None = None
    wanted: str | None = None

    def accepts(self, value: Any) -> bool:
        """Text is accepted, such as the "auto" of a number: the section checks it."""
        if isinstance(value, str) or value is None:
            return True
        if isinstance(value, (tuple, list)):
            return self.count in (None, len(value)) and all(map(self.accepts, value))
        within = self.above < value < self.below and self.least <= value <= self.most
        return (within and not math.isinf(value)) or value == self.also

    def __str__(self) -> str:
        if self.wanted is not None:
            return self.wanted
        if self.above > -math.inf:
            return f"a number above {self.above:g}"
        if self.below < math.inf:
            return f"from {self.least:g} to below {self.below:g}"
        if self.most < math.inf:
            return f"{self.least:,} to {self.most:,}"
        return "0 or more" if self.least == 0 else f"at least {self.least:g}"


@dataclass(frozen=True)
class Duration:
    """Bounds of a number of batches or epochs, such as "500ba".

    Attributes:
        percent: whether a percentage of the run is accepted too.
    """

    percent: bool = False

    def accepts(self, value: str | None) -> bool:
        pattern = r"[1-9]\d*(ba|ep)" + r"|(100|\d{1,2}(\.\d+)?)%" * self.percent
        return value is None or re.fullmatch(pattern, value) is not None

    def __str__(self) -> str:
        also = ' or a percentage of the run such as "5%"' if self.percent else ""
        return f'batches or epochs, 1 or more, such as "500ba" or "2ep"{also}'


POSITIVE = Bounds(above=0)
NOT_NEGATIVE = Bounds(least=0)
FRACTION = Bounds(least=0, most=1, wanted="a fraction from 0 to 1")
DURATION, DURATION_OR_PERCENT = Duration(), Duration(percent=True)


def key(
    default: Any = MISSING,
    on_resume: OnResume | None = None,
    bounds: Bounds | Duration | None = None,
    *,
    factory: Callable[[], Any] | None = None,
    unit: str | None = None,
    defines_weights: bool = False,
) -> Any:
    """A dataclass field of the configuration.

    Args:
        default: its value if no YAML sets it.
        on_resume: None if the section that contains the field declares it for all keys.
        bounds: None if every value of its type is accepted, or the section checks it together with other keys.
        factory: creates the default if it is mutable.
        unit: what the number counts or measures, such as "seconds".
        defines_weights: trained weights have another meaning with another value, although every shape is the same: a
            model is not loaded with a different one.
    """
    metadata = {ON_RESUME: on_resume, DEFINES_WEIGHTS: defines_weights, BOUNDS: bounds, UNIT: unit}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)
