"""Checks of a row's values, which raise BadRow with the name of the first wrong one."""

from collections.abc import Sequence
from typing import Any

from ugt_composer.jsonl.bad_row import BadRow, HugeNumber, shown


def list_of(value: Any, name: str, of: str = "integers") -> list[Any]:
    """Raises BadRow unless the value is a list, whose values are not checked."""
    if not isinstance(value, list):
        raise BadRow(name, "wrong type", shown(value), f"a list of {of}")
    return value


def check_range(values: list[Any], name: str, size: int, noun: str) -> None:
    for at, value in enumerate(values):
        if type(value) is not int or not 0 <= value < size:
            raise bad_integer(value, f"{name}[{at}]", size, noun)


def bad_integer(value: Any, name: str, size: int, noun: str) -> BadRow:
    """JSON's true and 1.0 are not integers."""
    reason = "out of range" if type(value) in (int, HugeNumber) else "wrong type"
    return BadRow(name, reason, shown(value), f"{noun} in 0..{size - 1}")


def same_length(name: str, values: Sequence[Any], first_name: str, first: Sequence[Any]) -> None:
    if len(values) != len(first):
        raise BadRow(name, "lengths differ", f"{len(values)} values", f"{len(first)}, as many as {first_name} has")
