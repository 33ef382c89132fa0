"""A row that must not reach a shard, and why."""

import json
import re
from typing import Any

LINE = "line"  # the field of an error that concerns the whole line
LONGEST_SHOWN = 60  # characters of a value in a message
LONGEST_NUMBER = 1000  # digits; Python refuses to convert more than 4,300, and no id has 20


class HugeNumber:
    """An integer with too many digits for any field of a row."""

    def __init__(self, digits: str):
        self.digits = digits


class BadRow(ValueError):
    """One error in one row. The message is «field: found …, expected …».

    Attributes:
        field: the key, with the index if the value is in a list, or LINE.
        reason: one of a few short phrases, by which bad rows are counted.
    """

    def __init__(self, field: str, reason: str, found: str, expected: str):
        super().__init__(f"{shown_name(field)}: found {found}, expected {expected}")
        self.field, self.reason = field, reason

    @property
    def key(self) -> str:
        """The field without its index."""
        return shown_name(re.sub(r"\[\d+\]", "", self.field))


def shown(value: Any) -> str:
    """A value as JSON in ASCII, cut to a length that fits a message."""
    try:
        return _cut(json.dumps(value, default=lambda huge: f"{huge.digits[:20]}... ({len(huge.digits)} digits)"))
    except RecursionError:
        return "a deeply nested value"


def shown_name(name: str) -> str:
    """An arbitrary key, on one line in ASCII."""
    return _cut(name if name.isascii() and name.isprintable() else json.dumps(name))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."
