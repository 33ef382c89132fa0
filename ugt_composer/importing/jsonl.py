"""Writes rows of the JSON Lines contract in bulk, by the rule of ugt_composer/data/history.py over many rows at once.

I items, R rows. `ids` is int (I, 3), the semantic IDs by item number.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ugt_composer.importing.splits import Rows
from ugt_composer.jsonl.schema import (
    CHOSEN,
    COLUMNS,
    DECODER_KEYS,
    EARLIER,
    ENCODER_KEYS,
    ITEM_KEYS,
    LABEL_KEYS,
    MEMBERS,
    REJECTED_LIST,
    SEQUENCE,
    USER,
)
from ugt_composer.vocabulary import CLS, ITEM, LEVELS
from ugt_composer.vocabulary import USER as USER_TOKEN

BLOCK_TOKENS = 4_000_000  # tokens of history written at a time, to bound the memory
Progress = Callable[[int], object]  # called with the number of rows written since the last call


def write_recommend(
    path: Path,
    rows: Rows,
    items: np.ndarray,
    users: pl.Series,
    ids: np.ndarray,
    offsets: np.ndarray,
    members: np.ndarray | None,
    progress: Progress,
) -> None:
    """Writes a recommend row for each of `rows`, which are ranges of `items` int (P,), item numbers.

    If a history lacks earlier items of its user, all rows have the number of these.

    Args:
        offsets: see `user_offsets`.
        members: int (I,) which of the items that share its ids each item is (`Bundle.members`); None: not written.
    """
    earlier = rows.earlier(offsets)
    table = _with_user_token(ids)
    with path.open("wb") as file:
        for block in _blocks(rows.stop - rows.start):
            histories = _tokens(items, rows.start[block], rows.stop[block], user_token=True)
            targets = _tokens(items, rows.stop[block], rows.end[block])
            encoder = dict(zip(ENCODER_KEYS, _lists(table, *histories), strict=True))
            decoder = dict(zip(DECODER_KEYS, _lists(table, *targets), strict=True))
            labels = {LABEL_KEYS[level]: decoder[DECODER_KEYS[level]] for level in range(LEVELS)}
            more: dict[str, Any] = {EARLIER: earlier[block]} if earlier.any() else {}
            if members is not None:
                numbers, lengths = targets
                more[MEMBERS] = _grouped(pl.DataFrame({MEMBERS: members[numbers]}), lengths)[MEMBERS]
            pl.DataFrame({USER: users[rows.user[block]], **encoder, **decoder, **labels, **more}).write_ndjson(file)
            progress(len(rows.user[block]))


def write_preferences(
    path: Path,
    rows: Rows,
    chosen: np.ndarray,
    rejected: np.ndarray,
    items: np.ndarray,
    users: pl.Series,
    ids: np.ndarray,
    progress: Progress,
) -> None:
    """Writes a preference row for each of `rows`, of which only the history is used.

    Args:
        chosen: int (R,) item numbers.
        rejected: int (R, K) item numbers; −1 where there are fewer than K. The first column is always an item.
    """
    table = _with_user_token(ids)
    with path.open("wb") as file:
        for block in _blocks(rows.stop - rows.start):
            histories = _tokens(items, rows.start[block], rows.stop[block], user_token=True)
            encoder = pl.DataFrame(dict(zip(ENCODER_KEYS, _lists(table, *histories), strict=True)))
            others = rejected[block]
            counts = (others >= 0).sum(axis=1)
            columns = {
                USER: users[rows.user[block]],
                SEQUENCE: encoder.to_struct(),
                CHOSEN: _items(ids[chosen[block]]),
                REJECTED_LIST: _grouped(_items(ids[others[others >= 0]]).to_frame("item"), counts)["item"],
            }
            pl.DataFrame(columns).write_ndjson(file)
            progress(len(counts))


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


def _tokens(
    items: np.ndarray, start: np.ndarray, stop: np.ndarray, user_token: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The item numbers of all rows in one array, each row led by −1 if it has a user token, and the rows' lengths."""
    lengths = stop - start + user_token
    first = np.cumsum(lengths) - lengths
    at = np.repeat(start - user_token - first, lengths) + np.arange(lengths.sum())
    numbers = items[at]
    if user_token:
        numbers[first] = -1
    return numbers, lengths


def _lists(table: np.ndarray, numbers: np.ndarray, lengths: np.ndarray) -> list[pl.Series]:
    """The list columns COLUMNS, from item numbers and row lengths as `_tokens` returns them."""
    first = np.cumsum(lengths) - lengths
    columns = {
        **{COLUMNS[level]: table[numbers, level] for level in range(LEVELS)},
        "positions": (np.arange(len(numbers)) - np.repeat(first, lengths)).astype(np.int32),
        "token_types": np.where(numbers < 0, USER_TOKEN, ITEM).astype(np.int32),
        "mask": np.ones(len(numbers), np.int32),
    }
    grouped = _grouped(pl.DataFrame(columns), lengths)
    return [grouped[name] for name in COLUMNS]


def _grouped(flat: pl.DataFrame, lengths: np.ndarray) -> pl.DataFrame:
    """Groups flat columns into columns of lists with these lengths (at least 1)."""
    row = pl.Series(np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths))
    return flat.with_columns(row.alias("row").set_sorted()).group_by("row", maintain_order=True).agg(pl.exclude("row"))


def _items(ids: np.ndarray) -> pl.Series:
    return pl.DataFrame({key: ids[:, level] for level, key in enumerate(ITEM_KEYS)}).to_struct("item")
