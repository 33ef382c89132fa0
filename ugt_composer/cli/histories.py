"""Turns the histories of users, as they are given, into rows for the model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.cli.history_inputs import ACTIONS, ITEMS, NOW, TIMES, take_inputs, take_now
from ugt_composer.cli.item_lists import EXCLUDE, ONLY, UserLists, checked_ids, user_lists
from ugt_composer.conversion.canonical import canonical_row
from ugt_composer.conversion.counts import Counts
from ugt_composer.conversion.rows import CheckedRow, check_row
from ugt_composer.conversion.settings import Settings
from ugt_composer.data.codec import IDS, POSITION, TOKEN_TYPE, Row
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


@dataclass(frozen=True)
class HistoryReader:
    """Turns the objects of a file into histories.

    An object has `items`, item ids of the catalogue, oldest first, or the six `encoder_*` lists of a recommend row;
    `user_id` is optional. `actions` and `times` of the items and `now`, the moment of prediction, may stand beside
    `items`; beside lists the first two are `encoder_actions` and `encoder_times`. Lists `only` and `exclude` of
    item ids are optional too.

    Attributes:
        settings: the limits of a history.
        catalogue: in which item ids are looked up; None: there can be none.
        actions: the names of the actions 1, 2, …, which may stand for their numbers.
    """

    settings: Settings
    catalogue: Catalogue | None
    actions: Sequence[str] = ()

    def of_line(self, line: bytes, place: str, name: str) -> History:
        """See `of_object`. UserError if the line is not one JSON object."""
        try:
            user = parse_object(line)
        except BadRow as error:
            raise UserError(f"{place}: {error}") from None
        return self.of_object(user, place, name)

    def of_object(self, user: dict[str, Any], place: str, name: str) -> History:
        """The history of one object, which is changed.

        Args:
            place: file and line, for messages.
            name: of a user without `user_id`.

        Raises:
            UserError: names the place, field, what was found and what was expected.
        """
        has_now = NOW in user
        try:
            unknown: list[str] = []
            check_keys(user, place)
            own = user_lists(user, place, self.catalogue)
            user |= take_now(user)
            if ITEMS in user:
                known, unknown, is_known = _look_up(user.pop(ITEMS), place, self.catalogue)
                user |= encoder_lists(known) | take_inputs(user, is_known, self.actions, self.settings)
            row = {"user_id": name, **NOTHING_TO_PREDICT, **user}
            checked = check_row(json.dumps(row).encode(), self.settings)
            canonical = canonical_row(checked, self.settings, Counts())
        except BadRow as error:
            message = str(error).replace(f"{DECODER_TIMES}[0]", NOW) if has_now else str(error)
            raise UserError(f"{place}: {message}") from None
        return History(canonical, unknown, *_earlier(checked, canonical), checked.earlier_items, own)

    def of_row(self, row: Row) -> History:
        """The history of a row of shards, cut to the most recent tokens as `canonical_row` does it."""
        tokens = row.encoder
        front = int(tokens[0, TOKEN_TYPE] == USER)
        cut = max(0, len(tokens) - self.settings.max_history)
        is_kept = np.ones(len(tokens), bool)
        is_kept[front : front + cut] = False
        encoder = tokens[is_kept]
        if cut and len(encoder) > front:
            encoder[front:, POSITION] -= encoder[front:, POSITION].min() - tokens[front:, POSITION].min()
        left_out = tokens[~is_kept]
        shorter = Row(
            user_id=row.user_id,
            encoder=encoder,
            decoder=row.decoder[:1],  # recommending reads none, but a row needs one
            rejected=row.rejected[:0],
            encoder_actions=None if row.encoder_actions is None else row.encoder_actions[is_kept],
            encoder_times=None if row.encoder_times is None else row.encoder_times[is_kept],
            decoder_times=None if row.decoder_times is None else row.decoder_times[:1],
        )
        earlier: list[SemanticId] = [(l1, l2, l3) for l1, l2, l3 in left_out[:, IDS].tolist()]
        return History(shorter, [], earlier, int((left_out[:, TOKEN_TYPE] == ITEM).sum()), 0, UserLists())


def history_settings(codebook_sizes: tuple[int, ...], max_seq_len: int, max_history: int | None) -> Settings:
    """The limits of a history.

    Args:
        max_history: the model reads so many items, the most recent ones, besides the user's token; None: the
            conversion's default, as far as the model has positions.
    """
    tokens = min(MAX_HISTORY, max_seq_len) if max_history is None else max_history + 1
    # Here a line is one user, so the conversion's limit, which protects it from broken files, does not apply.
    return Settings(RECOMMEND, codebook_sizes, tokens, max_positions=max_seq_len, max_line_bytes=LARGEST_LINE)


def check_keys(user: dict[str, Any], place: str) -> None:
    """UserError unless a history is given, in one of its two forms, with no optional key misspelt."""
    for key in user.keys() - KNOWN_KEYS:
        swapped = [name for name in OPTIONAL if sorted(name) == sorted(key)]
        if close := get_close_matches(key, OPTIONAL, n=1, cutoff=0.8) or swapped:
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
