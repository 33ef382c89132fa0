"""Parses one line of text as one JSON object, or gives the reason why it is not one."""

import json
from typing import Any

from ugt_composer.jsonl.bad_row import LINE, LONGEST_NUMBER, BadRow, HugeNumber, shown


def parse_object(line: bytes) -> dict[str, Any]:
    """The object on `line`. Raises BadRow for anything that is not exactly one JSON object in UTF-8."""
    try:
        value = _DECODER.decode(_text(line))
    except json.JSONDecodeError as error:
        near = shown(error.doc[error.pos : error.pos + 20]) if error.pos < len(error.doc) else "the end of the line"
        found = f"{near} at column {error.pos + 1} ({error.msg})"
        raise BadRow(LINE, "not JSON", found, "one JSON object per line") from None
    except RecursionError:
        raise BadRow(LINE, "nested too deeply", "brackets nested too deeply", "one flat JSON object") from None
    if not isinstance(value, dict):
        raise BadRow(LINE, "not an object", shown(value), "a JSON object in braces")
    return value


def _text(line: bytes) -> str:
    if line[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in line[:4]:
        raise BadRow(LINE, "not UTF-8", "apparently UTF-16 or binary data", "text in UTF-8")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line"
        raise BadRow(LINE, "not UTF-8", found, "text in UTF-8") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise BadRow(repeated, "duplicate key", f"the key {keys.count(repeated)} times", "each key once in an object")
    return result


def _no_constant(name: str) -> Any:
    raise BadRow(LINE, "not JSON", f"{name}, which JSON does not have", "finite numbers")


def _bounded_int(digits: str) -> int | HugeNumber:
    return int(digits) if len(digits) <= LONGEST_NUMBER else HugeNumber(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_int=_bounded_int)
