"""Reads histories from JSON and turns them into rows for the model."""

import json
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.cli.history_inputs import ACTIONS, ITEMS, NOW, TIMES, take_inputs, take_now
from ugt_composer.cli.item_lists import EXCLUDE, ONLY, UserLists, checked_ids, user_lists
from ugt_composer.conversion.canonical import canonical_row
from ugt_composer.conversion.counts import Counts
from ugt_composer.conversion.rows import CheckedRow, check_row
from ugt_composer.conversion.settings import Settings
from ugt_composer.data.codec import TOKEN_TYPE, Row
from ugt_composer.data.history import SemanticId, decoder_lists, encoder_lists
from ugt_composer.errors import UserError
from ugt_composer.jsonl.bad_row import BadRow, shown_name
from ugt_composer.jsonl.json_text import parse_object
from ugt_composer.jsonl.schema import (
    DECODER_TIMES,
    ENCODER_ACTIONS,
    ENCODER_KEYS,
    ENCODER_TIMES,
    MASK,
    RECOMMEND,
    TOKEN_TYPES,
)
from ugt_composer.vocabulary import ITEM, LEVELS, MAX_HISTORY, NUM_SPECIAL_IDS, USER

LARGEST_LINE = 1 << 30  # bytes
OPTIONAL = (ACTIONS, TIMES, NOW, ONLY, EXCLUDE)
KNOWN_KEYS = {ITEMS, *OPTIONAL}
NOTHING_TO_PREDICT = decoder_lists([(NUM_SPECIAL_IDS,) * 3])  # a row needs a target; recommending ignores it


class History(NamedTuple):
    """
    Attributes:
        row: the input of the model.
        unknown: item ids that are not in the catalogue and were left out.
        earlier: ids of the older tokens, which are left out of the row because the model reads only the most recent.
        earlier_items: how many of these tokens are items.
        missing_items: how many earlier items the file's row lacks.
        own: the user's own lists `only` and `exclude`.
    """

    row: Row
    unknown: Sequence[str]
    earlier: Sequence[SemanticId]
    earlier_items: int
    missing_items: int
    own: UserLists

    @property
    def lists(self) -> list[str]:
        """The optional lists that the row has."""
        values = (self.row.encoder_actions, self.row.encoder_times, self.row.decoder_times)
        keys = (ENCODER_ACTIONS, ENCODER_TIMES, DECODER_TIMES)
        return [key for key, value in zip(keys, values, strict=True) if value is not None]

    @property
    def items(self) -> int:
        """Number of items in the row."""
        return int((self.row.encoder[:, TOKEN_TYPE] == ITEM).sum())


def read_histories(
    path: str, settings: Settings, catalogue: Catalogue | None, actions: Sequence[str] = ()
) -> Iterator[History]:
    """Yields each history of a file: one JSON object or JSON Lines ("-": standard input).

    An object has `items`, item ids of the catalogue, oldest first, or the six `encoder_*` lists of a recommend row;
    `user_id` is optional. `actions` and `times` of the items and `now`, the moment of prediction, may stand beside
    `items`; beside lists the first two are `encoder_actions` and `encoder_times`. Lists `only` and `exclude` of
    item ids are optional too.

    Args:
        actions: the names of the actions 1, 2, …, which may stand for their numbers.

    Raises:
        UserError: names file, line, field, what was found and what was expected.
    """
    for number, line in _objects(path):
        place = f"{path}:{number}"
        has_now = False
        try:
            user = parse_object(line)
            unknown: list[str] = []
            _check_keys(user, place)
            own = user_lists(user, place, catalogue)
            has_now = NOW in user
            user |= take_now(user)
            if ITEMS in user:
                known, unknown, is_known = _look_up(user.pop(ITEMS), place, catalogue)
                user |= encoder_lists(known) | take_inputs(user, is_known, actions, settings)
            row = {"user_id": f"line-{number}", **NOTHING_TO_PREDICT, **user}
            checked = check_row(json.dumps(row).encode(), settings)
            canonical = canonical_row(checked, settings, Counts())
        except BadRow as error:
            message = str(error).replace(f"{DECODER_TIMES}[0]", NOW) if has_now else str(error)
            raise UserError(f"{place}: {message}") from None
        yield History(canonical, unknown, *_earlier(checked, canonical), checked.earlier_items, own)


def history_settings(codebook_sizes: tuple[int, ...], max_seq_len: int, max_history: int | None) -> Settings:
    """The limits of a history.

    Args:
        max_history: the model reads so many items, the most recent ones, besides the user's token; None: the
            conversion's default, as far as the model has positions.
    """
    tokens = min(MAX_HISTORY, max_seq_len) if max_history is None else max_history + 1
    # Here a line is one user, so the conversion's limit, which protects it from broken files, does not apply.
    return Settings(RECOMMEND, codebook_sizes, tokens, max_positions=max_seq_len, max_line_bytes=LARGEST_LINE)


def _check_keys(user: dict[str, Any], place: str) -> None:
    """UserError unless a history is given, in one of its two forms, with no optional key misspelt."""
    for key in user.keys() - KNOWN_KEYS:
        if close := get_close_matches(key, OPTIONAL, n=1, cutoff=0.8):
            raise UserError(f"{place}: {shown_name(key)} is unknown; did you mean {close[0]}?")
    lists = [key for key in ENCODER_KEYS if key in user]
    for key, instead in ((ACTIONS, ENCODER_ACTIONS), (TIMES, ENCODER_TIMES)):
        if lists and key in user:
            raise UserError(f"{place}: found `{key}` beside {lists[0]}; expected {instead}, as long as the other lists")
    if NOW in user and DECODER_TIMES in user:
        raise UserError(f"{place}: found both `{NOW}` and {DECODER_TIMES}; expected one of them")
    if ITEMS in user and lists:
        raise UserError(f"{place}: found both `{ITEMS}` and {lists[0]}; expected one of them")
    if ITEMS not in user and not lists:
        keys = ", ".join(map(shown_name, user)) or "no key"
        raise UserError(
            f"{place}: no history: found {keys}; expected `{ITEMS}`, a list of item ids of the catalogue, oldest "
            "first, or the six encoder_* lists of a recommend row"
        )


def _earlier(checked: CheckedRow, row: Row) -> tuple[list[SemanticId], int]:
    """The ids of the tokens of a checked row that its canonical row lacks, and how many of them are items."""
    tokens = [token for token in zip(*checked.encoder, strict=True) if token[MASK]]
    front = int(tokens[0][TOKEN_TYPES] == USER)
    cut = tokens[front : front + len(tokens) - len(row.encoder)]
    return [token[:LEVELS] for token in cut], sum(token[TOKEN_TYPES] == ITEM for token in cut)


def _look_up(items: Any, place: str, catalogue: Catalogue | None) -> tuple[list[SemanticId], list[str], list[bool]]:
    """The semantic IDs of the items in the catalogue, the item ids of the others, and which of all are in it."""
    if catalogue is None:
        raise UserError(
            f"{place}: `items` can be looked up only in a catalogue; expected --catalogue, or encoder_* lists instead"
        )
    items = checked_ids(items, f"{place}: {ITEMS}")
    is_known = [item in catalogue for item in items]
    known = [catalogue.triple_of(item) for item in items if item in catalogue]
    return known, [item for item in items if item not in catalogue], is_known


def _objects(path: str) -> Iterator[tuple[int, bytes]]:
    """(line, text) of one pretty-printed object, or of each line of JSON Lines."""
    try:
        text = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a JSON file with a history") from None
    text = text.removeprefix(b"\xef\xbb\xbf")
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f'{path}: is empty; expected a history such as {{"items": ["item-1", "item-2"]}}')
    first = lines[0][1].strip()
    return iter([(1, text)] if len(lines) > 1 and not first.endswith(b"}") else lines)
