"""Reads histories from JSON and turns them into rows for the model."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.conversion.canonical import canonical_row
from ugt_composer.conversion.counts import Counts
from ugt_composer.conversion.rows import check_row
from ugt_composer.conversion.settings import Settings
from ugt_composer.data.codec import Row
from ugt_composer.data.history import SemanticId, decoder_lists, encoder_lists
from ugt_composer.errors import UserError
from ugt_composer.jsonl.bad_row import BadRow
from ugt_composer.jsonl.json_text import parse_object
from ugt_composer.jsonl.schema import RECOMMEND
from ugt_composer.vocabulary import NUM_SPECIAL_IDS

NOTHING_TO_PREDICT = decoder_lists([(NUM_SPECIAL_IDS,) * 3])  # a row needs a target; recommending ignores it


class History(NamedTuple):
    """
    Attributes:
        row: the input of the model.
        unknown: item ids that are not in the catalogue and were left out.
        earlier: older items, left out of the row because the model reads only the most recent ones.
    """

    row: Row
    unknown: Sequence[str]
    earlier: Sequence[SemanticId]


def read_histories(path: str, settings: Settings, catalogue: Catalogue | None) -> Iterator[History]:
    """Yields each history of a file: one JSON object or JSON Lines ("-": standard input).

    An object has `items`, item ids of the catalogue, oldest first, or the six `encoder_*` lists of a recommend row;
    `user_id` is optional.

    Raises:
        UserError: names file, line, field, what was found and what was expected.
    """
    for number, line in _objects(path):
        place = f"{path}:{number}"
        try:
            user = parse_object(line)
            known: list[SemanticId] = []
            unknown: list[str] = []
            cut = 0
            if "items" in user:
                known, unknown = _look_up(user.pop("items"), place, catalogue)
                cut = max(0, len(known) - settings.max_positions + 1)  # the first position is the user's token
                user |= encoder_lists(known[cut:])
            row = {"user_id": f"line-{number}", **NOTHING_TO_PREDICT, **user}
            checked = check_row(json.dumps(row).encode(), settings)
            yield History(canonical_row(checked, settings, Counts()), unknown, known[:cut])
        except BadRow as error:
            raise UserError(f"{place}: {error}") from None


def history_settings(codebook_sizes: tuple[int, ...], max_seq_len: int) -> Settings:
    """The limits that the model's sizes set for a history."""
    return Settings(kind=RECOMMEND, codebook_sizes=codebook_sizes, max_positions=max_seq_len)


def _look_up(items: Any, place: str, catalogue: Catalogue | None) -> tuple[list[SemanticId], list[str]]:
    """The semantic IDs of the items in the catalogue, and the item ids of the others."""
    if catalogue is None:
        raise UserError(
            f"{place}: `items` can be looked up only in a catalogue; expected --catalogue, or encoder_* lists instead"
        )
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise UserError(f"{place}: items: found {json.dumps(items)[:60]}, expected a list of item ids in quotes")
    known = [catalogue.triple_of(item) for item in items if item in catalogue]
    return known, [item for item in items if item not in catalogue]


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
