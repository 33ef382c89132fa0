"""Parses many lines as msgspec structs, if all are valid and usual; `bulk_rows.py` converts the structs to rows.

The structs keep lists of integers as JSON text (`columns.py` reads them, one key at a time), which msgspec has checked
to be JSON. Duplicate and unknown keys, which msgspec does not report, are detected by counting quotation marks.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Union

import msgspec

from ugt_composer.conversion.columns import IrregularRows, RawLists, count_byte
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
    MEMBERS,
    PREFERENCE,
    RECOMMEND_KEYS,
    REJECTED,
    REJECTED_LIST,
    SCORE,
    SEQUENCE,
    USER,
)

INPUTS = (ENCODER_ACTIONS, ENCODER_TIMES, DECODER_TIMES)
MAX_ALLOWED_KEYS = 32  # extra keys per struct; rows with further ones are converted one by one

Item = tuple[int, int, int]


@dataclass
class ParsedRows:
    """R rows, one column per key. Lists of integers are JSON text, whose values have not been checked.

    Attributes:
        encoder, decoder, labels: six, six and three columns; the last two are empty for preference rows.
        earlier: of recommend rows, how many earlier items of the history each row lacks.
        members: of recommend rows, a list per row, or UNSET in those without one; empty if no row has one.
        chosen, rejected, scores: of preference rows.
        actions, times, target_times: the optional lists of numbers, empty if no row has them. A preference row's target
            time may be a single number.
        ignored_keys: number of rows by unknown key.
    """

    users: Sequence[str]
    encoder: Sequence[RawLists]
    decoder: Sequence[RawLists] = field(default_factory=list)
    labels: Sequence[RawLists] = field(default_factory=list)
    earlier: list[int] = field(default_factory=list)
    members: list[Any] = field(default_factory=list)
    chosen: list[Item] = field(default_factory=list)
    rejected: list[list[Item]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    actions: RawLists = ()
    times: RawLists = ()
    target_times: RawLists = ()
    ignored_keys: Counter[str] = field(default_factory=Counter)


class BulkParser:
    """Parses lines of one kind; unknown keys are accepted only after `allow` has named them."""

    def __init__(self, kind: str):
        self.kind = kind
        self._allowed: dict[str, list[str]] = {}  # keys by the object that holds them; "" is the row itself
        self._decode = self._decoder()

    def allow(self, keys: Sequence[str]) -> None:
        """Accepts unknown keys that a valid row has, such as "category" or "chosen_item.name"."""
        holders = (SEQUENCE, CHOSEN, REJECTED, REJECTED_LIST) if self.kind == PREFERENCE else ()
        changed = False
        for key in keys:
            holder, dot, name = key.partition(".")
            if not dot or holder not in holders:
                holder, name = "", key
            names = self._allowed.setdefault(holder, [])
            if name not in names and len(names) < MAX_ALLOWED_KEYS and _can_name_a_field(name):
                names.append(name)
                changed = True
        if changed:
            self._decode = self._decoder()

    def parse(self, lines: Sequence[bytes]) -> ParsedRows:
        """Raises IrregularRows unless each line is one object of the schema without duplicate or unknown keys."""
        text = b"\n".join(lines)
        _check_text(text)
        try:
            rows = [self._decode(line) for line in lines]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise IrregularRows from None
        if self.kind == PREFERENCE:
            parsed, quotes = self._preference(rows)
        else:
            parsed, quotes = self._recommend(rows)
        # `quotes` counts the quotation marks of the keys and strings that were parsed. If the text has more, some row
        # has a duplicate key (the struct keeps only the last) or a key that the struct lacks.
        if count_byte(text, b'"') != quotes or not all(parsed.users):
            raise IrregularRows
        return parsed

    def _decoder(self) -> Any:
        if self.kind == PREFERENCE:
            rejected = self._struct(REJECTED, dict.fromkeys(ITEM_KEYS, int))
            rejected_list = self._struct(REJECTED_LIST, dict.fromkeys(ITEM_KEYS, int))
            required = {
                USER: str,
                SEQUENCE: self._struct(
                    SEQUENCE,
                    dict.fromkeys(ENCODER_KEYS, msgspec.Raw),
                    dict.fromkeys((ENCODER_ACTIONS, ENCODER_TIMES), msgspec.Raw),
                ),
                CHOSEN: self._struct(CHOSEN, dict.fromkeys(ITEM_KEYS, int)),
            }
            optional: dict[str, Any] = {
                REJECTED: Union[rejected, list[rejected]],  # type: ignore[valid-type]  # noqa: UP007
                REJECTED_LIST: list[rejected_list],  # type: ignore[valid-type]
                SCORE: float,
                DECODER_TIMES: msgspec.Raw,
            }
        else:
            required = {USER: str, **dict.fromkeys(RECOMMEND_KEYS[1:], msgspec.Raw)}
            optional = {EARLIER: int, MEMBERS: list[int], **dict.fromkeys(INPUTS, msgspec.Raw)}
        return msgspec.json.Decoder(self._struct("", required, optional)).decode

    def _struct(self, holder: str, required: dict[str, Any], optional: dict[str, Any] | None = None) -> type:
        """A struct with these keys and, as fields extra_0, … of JSON text, the allowed unknown ones."""
        extras = {_extra(at): key for at, key in enumerate(self._allowed.get(holder, ()))}
        unset = {**(optional or {}), **dict.fromkeys(extras, msgspec.Raw)}
        fields = [(name, type_ | msgspec.UnsetType, msgspec.UNSET) for name, type_ in unset.items()]
        return msgspec.defstruct("Object", [*required.items(), *fields], rename=extras, gc=False)

    def _recommend(self, rows: list[Any]) -> tuple[ParsedRows, int]:
        users, *columns = zip(*map(msgspec.structs.astuple, rows), strict=True)
        encoder, decoder = columns[: len(ENCODER_KEYS)], columns[len(ENCODER_KEYS) :]
        labels = decoder[len(DECODER_KEYS) :]
        parsed = ParsedRows(users, encoder, decoder[: len(DECODER_KEYS)], labels[: len(LABEL_KEYS)])
        earlier = _column(rows, EARLIER)
        parsed.members = [] if all(row.target_members is msgspec.UNSET for row in rows) else _column(rows, MEMBERS)
        parsed.earlier = [0 if items is msgspec.UNSET else items for items in earlier]
        optional = sum(value is not msgspec.UNSET for value in (*earlier, *parsed.members))
        parsed.actions, parsed.times, parsed.target_times = (_all_or_none(rows, key) for key in INPUTS)
        optional += len(parsed.actions) + len(parsed.times) + len(parsed.target_times)
        quotes = 2 * (len(rows) * (len(RECOMMEND_KEYS) + 1) + optional)
        return parsed, quotes + self._extras("", rows, parsed.ignored_keys)

    def _preference(self, rows: list[Any]) -> tuple[ParsedRows, int]:
        sequences, chosen = _column(rows, SEQUENCE), _column(rows, CHOSEN)
        single, listed, scores = _column(rows, REJECTED), _column(rows, REJECTED_LIST), _column(rows, SCORE)
        rejected = [_one_of(one, many) for one, many in zip(single, listed, strict=True)]
        parsed = ParsedRows(
            users=[row.user_id for row in rows],
            encoder=[_column(sequences, key) for key in ENCODER_KEYS],
            chosen=[_item(item) for item in chosen],
            rejected=[[_item(item) for item in items] for items in rejected],
            scores=[1.0 if score is msgspec.UNSET else score for score in scores],
            actions=_all_or_none(sequences, ENCODER_ACTIONS),
            times=_all_or_none(sequences, ENCODER_TIMES),
            target_times=_all_or_none(rows, DECODER_TIMES),
        )
        names = len((USER, "the user's name", SEQUENCE, *ENCODER_KEYS, CHOSEN, *ITEM_KEYS, REJECTED))
        optional = sum(score is not msgspec.UNSET for score in scores)
        optional += len(parsed.actions) + len(parsed.times) + len(parsed.target_times)
        items = sum(map(len, rejected))
        quotes = 2 * (len(rows) * names + optional + items * len(ITEM_KEYS))
        for holder, objects in (
            ("", rows),
            (SEQUENCE, sequences),
            (CHOSEN, chosen),
            (REJECTED, _flat(rejected, listed, from_list=False)),
        ):
            quotes += self._extras(holder, objects, parsed.ignored_keys)
        lists = [many for many in listed if many is not msgspec.UNSET]
        items_of_lists = _flat(rejected, listed, from_list=True)
        quotes += self._extras(REJECTED_LIST, items_of_lists, parsed.ignored_keys, [len(many) for many in lists])
        return parsed, quotes

    def _extras(
        self, holder: str, objects: Sequence[Any], ignored: Counter[str], per_row: Sequence[int] | None = None
    ) -> int:
        """Counts the quotation marks of allowed keys and their values, and adds the rows with each key to `ignored`.

        Args:
            per_row: how many of the objects belong to each row; None: one.
        """
        quotes = 0
        for at, key in enumerate(self._allowed.get(holder, ())):
            column = _column(objects, _extra(at))
            values = [value for value in column if value is not msgspec.UNSET]
            text = b"".join(values)
            if b"{" in text:  # a nested object, which may have duplicate keys
                raise IrregularRows
            quotes += 2 * len(values) + text.count(b'"')
            if values:
                rows = len(values)
                if per_row is not None:
                    left = iter(column)
                    rows = sum(sum(value is not msgspec.UNSET for value in islice(left, n)) > 0 for n in per_row)
                ignored[f"{holder}.{key}" if holder else key] += rows
        return quotes


def _check_text(text: bytes) -> None:
    """msgspec checks the encoding only of strings that it returns; an escaped quotation mark would break the count."""
    if b"\\" in text and b'\\"' in text:
        raise IrregularRows
    if not text.isascii():
        try:
            text.decode("utf-8")
        except UnicodeDecodeError:
            raise IrregularRows from None


def _column(objects: Iterable[Any], name: str) -> list[Any]:
    return [getattr(item, name) for item in objects]


def _all_or_none(objects: Sequence[Any], name: str) -> list[Any]:
    """A column without UNSET; empty if no object has the key. IrregularRows if some have it and some do not."""
    values = [value for value in _column(objects, name) if value is not msgspec.UNSET]
    if len(values) not in (0, len(objects)):
        raise IrregularRows
    return values


def _can_name_a_field(key: str) -> bool:
    """Whether msgspec accepts the key; rows with other keys are converted one by one."""
    return key.isprintable() and not set(key) & {'"', "\\"}


def _extra(at: int) -> str:
    return f"extra_{at}"


def _one_of(single: Any, listed: Any) -> list[Any]:
    """The rejected items of a row, which may be under either key but not under both."""
    if (single is msgspec.UNSET) == (listed is msgspec.UNSET):
        raise IrregularRows
    if listed is not msgspec.UNSET:
        return listed
    return single if isinstance(single, list) else [single]


def _flat(rejected: list[list[Any]], listed: list[Any], from_list: bool) -> list[Any]:
    """The rejected items of the rows that have them under REJECTED_LIST, or of the other rows."""
    return [
        item
        for items, many in zip(rejected, listed, strict=True)
        if (many is not msgspec.UNSET) == from_list
        for item in items
    ]


def _item(item: Any) -> Item:
    return item.l1_id, item.l2_id, item.l3_id
