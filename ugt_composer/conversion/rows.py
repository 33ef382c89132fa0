"""Checks one row. Slow and exact: it checks every row that `bulk_rows.py` cannot convert in bulk."""

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np

from ugt_composer.conversion.actions_and_times import Inputs, read_inputs
from ugt_composer.conversion.row_values import bad_integer, check_range, list_of, same_length
from ugt_composer.conversion.settings import LARGEST_COUNT, LARGEST_POSITION, Settings
from ugt_composer.data.codec import LARGEST_MEMBER
from ugt_composer.jsonl.bad_row import LINE, BadRow, HugeNumber, shown, shown_name
from ugt_composer.jsonl.json_text import parse_object
from ugt_composer.jsonl.schema import (
    CHOSEN,
    DECODER_KEYS,
    DECODER_TIMES,
    EARLIER,
    ENCODER_ACTIONS,
    ENCODER_KEYS,
    ENCODER_TIMES,
    ITEM_KEYS,
    LABEL_KEYS,
    MASK,
    MEMBERS,
    POSITIONS,
    PREFERENCE,
    PREFERENCE_KEYS,
    RECOMMEND,
    RECOMMEND_KEYS,
    REJECTED,
    REJECTED_LIST,
    SCORE,
    SEQUENCE,
    TOKEN_TYPES,
    USER,
)
from ugt_composer.vocabulary import IGNORE_INDEX, LEVELS, NUM_TOKEN_TYPES

LARGEST_EARLIER = (1 << 31) - 1
ITEM_ID = "item_id"  # key of a catalogue's items
HISTORY_INPUTS = (ENCODER_ACTIONS, ENCODER_TIMES)

Item = tuple[int, ...]  # the ids of the three levels


@dataclass
class CheckedRow:
    """A row as in the file, with all values in range.

    Attributes:
        encoder: the six lists of S integers, in the order of ENCODER_KEYS; mask 0 or 1.
        decoder: the same with T integers; empty for a preference row.
        labels: three lists of T integers; empty for a preference row.
        members: T integers, or None if the row has none.
        inputs: its actions and times.
        chosen, rejected: the items of a preference row.
        earlier_items: how many items of the history are older than those in the row.
        ignored_keys: unknown keys, prefixed with the key of the object that holds them.
    """

    user_id: str
    encoder: list[list[int]]
    decoder: list[list[int]] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    members: list[int] | None = None
    inputs: Inputs = field(default_factory=Inputs)
    chosen: Item | None = None
    rejected: list[Item] = field(default_factory=list)
    preference_score: float = 1.0
    earlier_items: int = 0
    ignored_keys: list[str] = field(default_factory=list)


def check_row(line: bytes, settings: Settings) -> CheckedRow:
    """Raises BadRow with the first error of the row on `line`."""
    if len(line) > settings.max_line_bytes:
        raise too_long(len(line), settings)
    row = parse_object(line)
    if ITEM_ID in row and USER not in row:
        raise BadRow(
            LINE, "item", f"an item of a catalogue, with the key {ITEM_ID}", f"a {settings.kind} row of a user"
        )
    return _preference_row(row, settings) if settings.kind == PREFERENCE else _recommend_row(row, settings)


def too_long(size: int, settings: Settings) -> BadRow:
    return BadRow(LINE, "too long", f"{size} bytes", f"at most {settings.max_line_bytes} (--max-line-bytes)")


def _recommend_row(row: dict[str, Any], settings: Settings) -> CheckedRow:
    if SEQUENCE in row and ENCODER_KEYS[0] not in row:
        raise _other_kind(SEQUENCE, RECOMMEND, PREFERENCE)
    ignored = _unknown_keys(row, "", RECOMMEND_KEYS, optional=(EARLIER, MEMBERS, *HISTORY_INPUTS, DECODER_TIMES))
    user_id = _user_id(row[USER])
    encoder = _side(row, "", ENCODER_KEYS, settings)
    decoder = _side(row, "", DECODER_KEYS, settings)
    labels = [_labels(row, level, settings) for level in range(LEVELS)]
    for key, values in zip(LABEL_KEYS, labels, strict=True):
        same_length(key, values, DECODER_KEYS[0], decoder[0])
    earlier = row.get(EARLIER, 0)
    if type(earlier) is not int or not 0 <= earlier <= LARGEST_EARLIER:
        reason = "out of range" if type(earlier) in (int, HugeNumber) else "wrong type"
        raise BadRow(
            EARLIER, reason, shown(earlier), f"the number of earlier items of the history, 0..{LARGEST_EARLIER}"
        )
    members = None
    if MEMBERS in row:
        members = list_of(row[MEMBERS], MEMBERS)
        check_range(members, MEMBERS, LARGEST_MEMBER + 1, "the number of an item among those that share its ids,")
        same_length(MEMBERS, members, DECODER_KEYS[0], decoder[0])
    return CheckedRow(
        user_id,
        encoder,
        decoder,
        labels,
        members,
        inputs=read_inputs(row, row, "", encoder, decoder, settings),
        earlier_items=earlier,
        ignored_keys=ignored,
    )


def _preference_row(row: dict[str, Any], settings: Settings) -> CheckedRow:
    if ENCODER_KEYS[0] in row and SEQUENCE not in row:
        raise _other_kind(ENCODER_KEYS[0], PREFERENCE, RECOMMEND)
    ignored = _unknown_keys(row, "", PREFERENCE_KEYS, optional=(REJECTED, REJECTED_LIST, SCORE, DECODER_TIMES))
    user_id = _user_id(row[USER])
    sequence = _object(row[SEQUENCE], SEQUENCE)
    ignored += _unknown_keys(sequence, f"{SEQUENCE}.", ENCODER_KEYS, optional=HISTORY_INPUTS)
    encoder = _side(sequence, f"{SEQUENCE}.", ENCODER_KEYS, settings)
    chosen = _item(row[CHOSEN], CHOSEN, settings, ignored)
    rejected = [_item(value, name, settings, ignored) for name, value in _rejected(row)]
    if chosen in rejected:
        raise BadRow(CHOSEN, "rejected holds the chosen item", shown(list(chosen)), "an item that is not rejected too")
    score = _score(row[SCORE]) if SCORE in row else 1.0
    return CheckedRow(
        user_id,
        encoder,
        inputs=read_inputs(row, sequence, f"{SEQUENCE}.", encoder, None, settings),
        chosen=chosen,
        rejected=rejected,
        preference_score=score,
        ignored_keys=sorted(set(ignored)),
    )


def _other_kind(key: str, kind: str, other: str) -> BadRow:
    return BadRow(LINE, "row of the other kind", f"the key {key} of a {other} row", f"a {kind} row (--kind {kind})")


def _unknown_keys(
    content: dict[str, Any], prefix: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> list[str]:
    """The keys that the schema does not have. BadRow if a key is missing, or one resembles an optional one."""
    unknown = [key for key in content if key not in required and key not in optional]
    for key in required:
        if key not in content:
            near = get_close_matches(key, unknown, n=1, cutoff=0.6)
            instead = f"no such key but {shown_name(near[0])}" if near else "no such key"
            raise BadRow(prefix + key, "missing key", instead, f"the key {key}")
    for key in unknown:
        close = get_close_matches(key.lower(), optional, n=1, cutoff=0.8)
        if close:
            raise BadRow(prefix + key, "unknown key", "an unknown key", f"{close[0]} (or a less similar name)")
    return [prefix + key for key in unknown]


def _user_id(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BadRow(USER, "wrong type" if value != "" else "empty", shown(value), "a string that is not empty")
    try:
        size = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise BadRow(USER, "not UTF-8", shown(value), "text without lone surrogates") from None
    if size > LARGEST_COUNT:
        raise BadRow(USER, "too long", f"{size} bytes", f"at most {LARGEST_COUNT} bytes")
    return value


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRow(name, "wrong type", shown(value), "an object")
    return value


def _side(row: dict[str, Any], prefix: str, keys: tuple[str, ...], settings: Settings) -> list[list[int]]:
    """The six lists of an encoder or decoder."""
    columns = []
    for column, key in enumerate(keys):
        name = prefix + key
        values = list_of(row[key], name)
        if column < LEVELS:
            check_range(values, name, settings.codebook_sizes[column], "an id")
        elif column == POSITIONS:
            check_range(values, name, LARGEST_POSITION + 1, "a position")
        elif column == TOKEN_TYPES:
            check_range(values, name, NUM_TOKEN_TYPES, "a token type")
        else:
            values = _mask(values, name)
        columns.append(values)
        same_length(name, values, prefix + keys[0], columns[0])
    if not any(columns[MASK]):
        found = "no position with mask 1" if columns[MASK] else "an empty list"
        raise BadRow(prefix + keys[MASK], "empty", found, "at least one position with mask 1")
    return columns


def _mask(values: list[Any], name: str) -> list[int]:
    for at, value in enumerate(values):
        if type(value) not in (int, bool) or value not in (0, 1):
            reason = "out of range" if type(value) is int else "wrong type"
            raise BadRow(f"{name}[{at}]", reason, shown(value), "0, 1, true or false")
    return [int(value) for value in values]


def _labels(row: dict[str, Any], level: int, settings: Settings) -> list[int]:
    name, size = LABEL_KEYS[level], settings.codebook_sizes[level]
    values = list_of(row[name], name)
    for at, value in enumerate(values):
        if type(value) is not int or (value != IGNORE_INDEX and not 0 <= value < size):
            reason = "out of range" if type(value) is int else "wrong type"
            raise BadRow(f"{name}[{at}]", reason, shown(value), f"{IGNORE_INDEX} (ignored) or an id in 0..{size - 1}")
    return values


def _item(value: Any, name: str, settings: Settings, ignored: list[str]) -> Item:
    item = _object(value, name)
    ignored += _unknown_keys(item, name.partition("[")[0] + ".", ITEM_KEYS)
    for key, size in zip(ITEM_KEYS, settings.codebook_sizes, strict=True):
        if type(item[key]) is not int or not 0 <= item[key] < size:
            raise bad_integer(item[key], f"{name}.{key}", size, "an id")
    return tuple(item[key] for key in ITEM_KEYS)


def _rejected(row: dict[str, Any]) -> list[tuple[str, Any]]:
    """The rejected items with their names in messages. Both keys accept a list, REJECTED also a single object."""
    if REJECTED in row and REJECTED_LIST in row:
        raise BadRow(REJECTED_LIST, "unknown key", f"{REJECTED} too", f"one of {REJECTED} and {REJECTED_LIST}")
    name = REJECTED if REJECTED in row else REJECTED_LIST
    if name not in row:
        raise BadRow(REJECTED, "missing key", "no such key", f"the key {REJECTED} or {REJECTED_LIST}")
    value = row[name]
    if isinstance(value, dict) and name == REJECTED:
        return [(name, value)]
    if not isinstance(value, list):
        raise BadRow(name, "wrong type", shown(value), "an object or a list of them")
    if not 0 < len(value) <= LARGEST_COUNT:
        raise BadRow(name, "empty" if not value else "too long", f"{len(value)} items", f"1..{LARGEST_COUNT} items")
    return [(f"{name}[{at}]", item) for at, item in enumerate(value)]


def _score(value: Any) -> float:
    if type(value) not in (int, float):
        raise BadRow(SCORE, "wrong type", shown(value), "a number above 0, at most 1")
    if not 0 < value <= 1 or np.float32(value) == 0:
        raise BadRow(SCORE, "out of range", shown(value), "a number above 0, at most 1")
    return float(value)
