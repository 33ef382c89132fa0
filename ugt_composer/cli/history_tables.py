"""Histories in Parquet: a row for each user, with the keys of a history's object as columns; null is an absent key."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from ugt_composer.cli.histories import History, HistoryReader, check_keys
from ugt_composer.cli.history_files import HASH, HistoryFile, Scan, Start
from ugt_composer.cli.history_inputs import ACTIONS, ITEMS, NOW, TIMES
from ugt_composer.cli.item_lists import EXCLUDE, ONLY
from ugt_composer.errors import UserError, first_line, where_searched
from ugt_composer.jsonl.schema import DECODER_TIMES, EARLIER, ENCODER_ACTIONS, ENCODER_KEYS, ENCODER_TIMES
from ugt_composer.jsonl.schema import USER as USER_ID
from ugt_composer.storage.hashed_file import file_hash

SLICE_ROWS = 1 << 14  # rows read at a time; a row group is the least that can be decompressed
TEXT, TEXTS, NUMBER, NUMBERS = "text", "lists of text", "integers", "lists of integers"
# What each column may hold. Ids may be numbers too: they become text.
KINDS = {
    USER_ID: (TEXT, NUMBER),
    ITEMS: (TEXTS, NUMBERS),
    ONLY: (TEXTS, NUMBERS),
    EXCLUDE: (TEXTS, NUMBERS),
    ACTIONS: (TEXTS, NUMBERS),
    TIMES: (NUMBERS,),
    NOW: (NUMBER,),
    EARLIER: (NUMBER,),
    **dict.fromkeys((*ENCODER_KEYS, ENCODER_ACTIONS, ENCODER_TIMES, DECODER_TIMES), (NUMBERS,)),
}
IDS = (USER_ID, ITEMS, ONLY, EXCLUDE)


class ParquetFile(HistoryFile):
    """A start is the number of rows before it."""

    def scan(self, users_per_part: int) -> Scan:
        rows = self._rows()
        return Scan(rows, [(row,) for row in range(0, rows, users_per_part)], file_hash(HASH, Path(self.path)))

    def read(self, reader: HistoryReader, start: Start | None = None) -> Iterator[History]:
        (first,) = start or (0,)
        columns, rows = self._columns(), self._rows()
        for begin in range(first, rows, SLICE_ROWS):
            table = self._collect(pl.scan_parquet(self.path).select(columns).slice(begin, SLICE_ROWS))
            for number, user in enumerate(table.iter_rows(named=True), begin + 1):
                given = {key: value for key, value in user.items() if value is not None}
                yield reader.of_object(given, f"{self.path}, row {number}", f"row-{number}")

    def _rows(self) -> int:
        return int(self._collect(pl.scan_parquet(self.path).select(pl.len())).item())

    def _columns(self) -> list[pl.Expr]:
        """The columns of a history. UserError if they are none, or hold something else than expected."""
        try:
            schema = pl.read_parquet_schema(self.path)
        except (Exception, pl.exceptions.PanicException) as error:
            raise self._unreadable(error) from None
        check_keys(dict.fromkeys(schema), self.path)
        for name in KINDS.keys() & schema.keys():
            if _kind(schema[name]) not in (*KINDS[name], None):
                expected = " or ".join(KINDS[name])
                raise UserError(f"{self.path}: the column {name} holds {schema[name]}; expected {expected}")
        return [_column(name, dtype) for name, dtype in schema.items() if name in KINDS]

    def _collect(self, query: pl.LazyFrame) -> pl.DataFrame:
        try:
            return query.collect()
        except (Exception, pl.exceptions.PanicException) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: BaseException) -> UserError:
        if isinstance(error, OSError) and not Path(self.path).exists():
            return UserError(f"{self.path}: no such file{where_searched(self.path)}; expected Parquet with histories")
        return UserError(f"{self.path}: cannot be read as Parquet ({first_line(error)}); copy or create it again")


def _kind(dtype: Any) -> str | None:
    """What a column of this type holds; None for a column of nulls."""
    inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else dtype
    if inner == pl.Null:
        return None
    is_list = inner is not dtype
    if inner in (pl.String, pl.Categorical, pl.Enum):
        return TEXTS if is_list else TEXT
    if inner.is_integer():
        return NUMBERS if is_list else NUMBER
    return str(dtype)


def _column(name: str, dtype: Any) -> pl.Expr:
    """The column, with ids as text and arrays as lists."""
    if not isinstance(dtype, pl.List | pl.Array):
        return pl.col(name).cast(pl.String) if name in IDS else pl.col(name)
    return pl.col(name).cast(pl.List(pl.String if name in IDS else dtype.inner))
