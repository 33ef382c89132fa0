"""Objects of JSON Lines files with their line numbers, and their values as text."""

import json
from collections.abc import Iterator, Sequence
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


def json_objects(part: Part, single: Sequence[str] = ()) -> Iterator[JsonObject]:
    """All objects, one a line. Blank lines are left out.

    Args:
        single: keys whose values, such as ids, are no lists and no objects.
    """
    decode = msgspec.json.Decoder().decode
    before = 0 if part.span is None else part.span.lines_before
    for number, line in enumerate(text_lines(part), start=before + 1):
        if undecoded(line):
            yield JsonObject(number, {}, encoding_problem(part))
            continue
        if not line or line.isspace():
            continue
        try:
            value = decode(line)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            value = _leniently_decoded(line)
        nested = [key for key in single if isinstance(value, dict) and isinstance(value.get(key), (dict, list))]
        if nested:
            found = json.dumps(value[nested[0]], ensure_ascii=False)[:SHOWN_CHARACTERS]
            yield JsonObject(number, {}, f"found {nested[0]!r} with {found}, expected a single value")
        elif isinstance(value, dict):
            yield JsonObject(number, value)
        else:
            found = repr(line[:SHOWN_CHARACTERS]) if isinstance(value, ValueError) else KINDS[type(value)]
            yield JsonObject(number, {}, f"found {found}, expected one JSON object per line{_hint(line)}")


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


def _hint(line: str) -> str:
    """Part of a sentence: what a file is that starts with this line."""
    if line.lstrip().startswith("["):
        return " (a JSON array becomes that with: jq -c '.[]' FILE > FILE.jsonl)"
    return " (this is a dictionary of Python, not JSON)" if line.lstrip().startswith("{'") else ""


def _leniently_decoded(line: str) -> Any:
    """What Python's json module, which also knows NaN, reads; a ValueError if it reads nothing, or no valid Unicode."""
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return ValueError(line)
    return value
