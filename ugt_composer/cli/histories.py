"""Histories as a user writes them, to rows as the model reads them."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ugt_composer.conversion.bad_row import BadRow
from ugt_composer.conversion.canonical import canonical_row
from ugt_composer.conversion.counts import Counts
from ugt_composer.conversion.json_text import parse_object
from ugt_composer.conversion.rows import check_row
from ugt_composer.conversion.settings import Settings
from ugt_composer.data.catalogue import Catalogue
from ugt_composer.data.codec import Row
from ugt_composer.data.history import decoder_lists, encoder_lists
from ugt_composer.data.manifest import RECOMMEND
from ugt_composer.errors import UserError
from ugt_composer.vocabulary import NUM_SPECIAL_IDS

NOTHING_TO_PREDICT = decoder_lists([(NUM_SPECIAL_IDS,) * 3])  # a row needs a target; recommending ignores it


def read_histories(path: str, settings: Settings, catalogue: Catalogue | None) -> Iterator[tuple[Row, list[str]]]:
    """Yields each history with the item ids in it that the catalogue does not know.

    The file is one JSON object or JSON Lines ("-": standard input). An object has `items`, item ids of the catalogue,
    oldest first, or the six `encoder_*` lists of a recommend row; `user_id` is optional.

    Raises:
        UserError: naming file, line, field, what was found and what was expected.
    """
    for number, line in _objects(path):
        place = f"{path}:{number}"
        try:
            user = parse_object(line)
            unknown: list[str] = []
            if "items" in user:
                user, unknown = _with_lists(user, place, catalogue)
            row = {"user_id": f"line-{number}", **NOTHING_TO_PREDICT, **user}
            yield canonical_row(check_row(json.dumps(row).encode(), settings), settings, Counts()), unknown
        except BadRow as error:
            raise UserError(f"{place}: {error}") from None


def history_settings(codebook_sizes: tuple[int, ...], max_seq_len: int) -> Settings:
    """The bounds that a model sets to a history."""
    return Settings(kind=RECOMMEND, codebook_sizes=codebook_sizes, max_positions=max_seq_len)


def _with_lists(user: dict[str, Any], place: str, catalogue: Catalogue | None) -> tuple[dict[str, Any], list[str]]:
    if catalogue is None:
        raise UserError(f"{place}: items are given by their ids; expected --catalogue, or the encoder_* lists instead")
    items = user.pop("items")
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise UserError(f"{place}: items: found {json.dumps(items)[:60]}, expected a list of item ids in quotes")
    known = [item for item in items if item in catalogue]
    unknown = [item for item in items if item not in catalogue]
    return {**user, **encoder_lists([catalogue.triple_of(item) for item in known])}, unknown


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
