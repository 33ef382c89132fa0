"""Objects of JSON Lines files with their line numbers, and their values as text."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from ugt_composer.importing.inputs import Part
from ugt_composer.importing.text_lines import encoding_problem, text_lines, undecoded

SHOWN_CHARACTERS = 60
KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a truth value", type(None): "null"}


@dataclass(frozen=True)
class JsonObject:
    """The object in a line of the file; `problem` says what is wrong with a damaged one."""

    line: int
    fields: dict[str, Any]
    problem: str | None = None


def json_objects(part: Part) -> Iterator[JsonObject]:
    """All objects, one a line. Blank lines are left out."""
    decode = msgspec.json.Decoder().decode
    for number, line in enumerate(text_lines(part), start=1):
        if undecoded(line):
            yield JsonObject(number, {}, encoding_problem(part))
            continue
        if not line or line.isspace():
            continue
        try:
            value = decode(line)
        except (msgspec.DecodeError, UnicodeError):
            value = _leniently_decoded(line)
        if isinstance(value, dict):
            yield JsonObject(number, value)
        elif isinstance(value, ValueError):
            yield JsonObject(number, {}, f"found {line[:SHOWN_CHARACTERS]!r}, expected one JSON object per line")
        else:
            found = KINDS[type(value)]
            yield JsonObject(number, {}, f"found {found}, expected one JSON object per line")


def json_text(value: Any) -> str | None:
    """A value as text; None for null and for what is empty. Lists, also nested ones, become their texts with commas."""
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        # A whole number that passed through a column of floats; NaN is what Python writes for a missing value.
        return None if value != value else str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, list):
        return ", ".join(text for text in map(json_text, value) if text is not None) or None
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def _leniently_decoded(line: str) -> Any:
    """What Python's json module, which also knows NaN, reads; a ValueError if it reads nothing, or no valid Unicode."""
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return ValueError(line)
    return value
