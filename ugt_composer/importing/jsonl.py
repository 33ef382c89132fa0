"""Makes rows of the JSON Lines contract in bulk, by the rule of ugt_composer/data/history.py over many rows at once.

I items, R rows. `ids` is int (I, 3), the semantic IDs by item number.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from ugt_composer.importing.preferences import PreferenceRows
from ugt_composer.importing.splits import Ranges
from ugt_composer.importing.timeline import Tokens
from ugt_composer.jsonl.schema import (
    CHOSEN,
    COLUMNS,
    DECODER_KEYS,
    DECODER_TIMES,
    EARLIER,
    ENCODER_ACTIONS,
    ENCODER_KEYS,
    ENCODER_TIMES,
    ITEM_KEYS,
    LABEL_KEYS,
    MEMBERS,
    REJECTED_LIST,
    SEQUENCE,
    USER,
)
from ugt_composer.vocabulary import CLS, ITEM, LEVELS
from ugt_composer.vocabulary import USER as USER_TOKEN

BLOCK_TOKENS = 250_000  # tokens of history in a block, to bound the memory: some 10 MB of text


def recommend_blocks(
    histories: Ranges,
    history_tokens: Tokens,
    targets: Ranges,
    target_tokens: Tokens,
    users: pl.Series,
    ids: np.ndarray,
    offsets: np.ndarray | None,
    members: np.ndarray | None,
) -> Iterator[pl.DataFrame]:
    """Blocks of recommend rows: one row for each history and its targets, which are ranges of tokens.

    Args:
        offsets: int64 (U + 1,): user u's tokens of histories are offsets[u] to offsets[u + 1]; rows have the number of
            earlier items of their user that their history lacks. None: it lacks none in any row of the file.
        members: int (I,) which of the items that share its ids each item is (`Bundle.members`); None: not written.
    """
    table = _with_user_token(ids)
    for block in _blocks(histories.stop - histories.start):
        places, lengths = _places(targets.start[block], targets.stop[block])
        numbers = target_tokens.item[places]
        decoder = dict(zip(DECODER_KEYS, _lists(table, numbers, lengths), strict=True))
        labels = {LABEL_KEYS[level]: decoder[DECODER_KEYS[level]] for level in range(LEVELS)}
        more: dict[str, Any] = {}
        if target_tokens.seconds is not None:
            more[DECODER_TIMES] = _list(target_tokens.seconds[places], lengths)
        if offsets is not None:
            more[EARLIER] = histories.start[block] - offsets[histories.user[block]]
        if members is not None:
            more[MEMBERS] = _list(members[numbers], lengths)
        encoder = _encoder(table, histories.start[block], histories.stop[block], history_tokens)
        yield pl.DataFrame({USER: users[histories.user[block]], **encoder, **decoder, **labels, **more})


def preference_blocks(
    rows: PreferenceRows, tokens: Tokens, users: pl.Series, ids: np.ndarray
) -> Iterator[pl.DataFrame]:
    """Blocks of preference rows: one row for each of `rows`, whose histories are ranges of tokens."""
    table = _with_user_token(ids)
    for block in _blocks(rows.histories.stop - rows.histories.start):
        encoder = pl.DataFrame(_encoder(table, rows.histories.start[block], rows.histories.stop[block], tokens))
        others = rows.rejected[block]
        counts = (others >= 0).sum(axis=1)
        columns = {
            USER: users[rows.histories.user[block]],
            SEQUENCE: encoder.to_struct(),
            CHOSEN: _items(ids[rows.chosen[block]]),
            REJECTED_LIST: _grouped(_items(ids[others[others >= 0]]).to_frame("item"), counts)["item"],
        }
        if rows.seconds is not None:
            columns[DECODER_TIMES] = pl.Series(rows.seconds[block])
        yield pl.DataFrame(columns)


def _blocks(lengths: np.ndarray) -> Iterator[slice]:
    """Slices of rows that hold about BLOCK_TOKENS tokens each."""
    ends = np.cumsum(lengths + 2)  # plus the user token and at least one target
    start = 0
    while start < len(lengths):
        done = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, done + BLOCK_TOKENS, side="right")), start + 1)
        yield slice(start, stop)
        start = stop


def _with_user_token(ids: np.ndarray) -> np.ndarray:
    """(I + 1, 3): `ids` and a last row for the user token, which index −1 selects."""
    return np.concatenate([ids, np.full((1, LEVELS), CLS)]).astype(np.int32)


def _places(start: np.ndarray, stop: np.ndarray, user_token: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The places start to stop of all rows in one array, and the rows' lengths.

    A user token, if there is one, leads its row; its place is that of the row's first item.
    """
    lengths = stop - start + user_token
    first = np.cumsum(lengths) - lengths
    places = np.repeat(start - user_token - first, lengths) + np.arange(lengths.sum())
    if user_token:
        places[first] = start
    return places, lengths


def _encoder(table: np.ndarray, start: np.ndarray, stop: np.ndarray, tokens: Tokens) -> dict[str, pl.Series]:
    """The lists of histories by key. The user's token has no action, and the time of the first item."""
    places, lengths = _places(start, stop, user_token=True)
    user_at = np.cumsum(lengths) - lengths
    numbers = tokens.item[places]
    numbers[user_at] = -1
    lists = dict(zip(ENCODER_KEYS, _lists(table, numbers, lengths), strict=True))
    if tokens.action is not None:
        actions = tokens.action[places]
        actions[user_at] = 0
        lists[ENCODER_ACTIONS] = _list(actions, lengths)
    if tokens.seconds is not None:
        lists[ENCODER_TIMES] = _list(tokens.seconds[places], lengths)
    return lists


def _lists(table: np.ndarray, numbers: np.ndarray, lengths: np.ndarray) -> list[pl.Series]:
    """The list columns COLUMNS, from the item numbers of all rows, −1 for a user token, and the rows' lengths."""
    first = np.cumsum(lengths) - lengths
    columns = {
        **{COLUMNS[level]: table[numbers, level] for level in range(LEVELS)},
        "positions": (np.arange(len(numbers)) - np.repeat(first, lengths)).astype(np.int32),
        "token_types": np.where(numbers < 0, USER_TOKEN, ITEM).astype(np.int32),
        "mask": np.ones(len(numbers), np.int32),
    }
    grouped = _grouped(pl.DataFrame(columns), lengths)
    return [grouped[name] for name in COLUMNS]


def _list(values: np.ndarray, lengths: np.ndarray) -> pl.Series:
    """One column of lists with these lengths (at least 1)."""
    return _grouped(pl.DataFrame({"value": values}), lengths)["value"]


def _grouped(flat: pl.DataFrame, lengths: np.ndarray) -> pl.DataFrame:
    """Groups flat columns into columns of lists with these lengths (at least 1)."""
    row = pl.Series(np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths))
    return flat.with_columns(row.alias("row").set_sorted()).group_by("row", maintain_order=True).agg(pl.exclude("row"))


def _items(ids: np.ndarray) -> pl.Series:
    return pl.DataFrame({key: ids[:, level] for level, key in enumerate(ITEM_KEYS)}).to_struct("item")
