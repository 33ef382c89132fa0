"""The files that recommendations are written to: JSON Lines or Parquet, with a list for each user."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ugt_composer.cli.recommendation_lists import Entry, UserRecommendations

LEVEL_IDS = {"l1_id": pl.Int64, "l2_id": pl.Int64, "l3_id": pl.Int64}
SCORES = {"log_prob": pl.Float64, "score": pl.Float64}


def json_line(user_id: str, entries: Sequence[Entry]) -> str:
    return json.dumps({"user_id": user_id, "recommendations": entries}, ensure_ascii=False)


class ListFileWriter(ABC):
    """Writes a new file of lists."""

    @abstractmethod
    def write(self, lists: Sequence[UserRecommendations]) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class JsonLinesWriter(ListFileWriter):
    """An object on each line, as `ugt recommend --json` prints it."""

    def __init__(self, path: Path, has_items: bool):
        self._file = path.open("w", encoding="utf-8")

    def write(self, lists: Sequence[UserRecommendations]) -> None:
        self._file.writelines(f"{json_line(one.user_id, one.entries)}\n" for one in lists)

    def close(self) -> None:
        self._file.close()


class ParquetWriter(ListFileWriter):
    """A row for each user, with the columns `user_id` and `recommendations`, a list of structs with the keys of JSON.

    Args:
        has_items: whether the lists are of items of a catalogue, which have ids and names.
    """

    def __init__(self, path: Path, has_items: bool):
        self._path = path
        items = {"item_id": pl.String, "name": pl.String} if has_items else {}
        entry = pl.Struct({"rank": pl.Int64, **items, **LEVEL_IDS, **SCORES})
        self._schema = pl.Schema([("user_id", pl.String()), ("recommendations", pl.List(entry))])
        self._tables = [pl.DataFrame(schema=self._schema)]

    def write(self, lists: Sequence[UserRecommendations]) -> None:
        rows = [(one.user_id, one.entries) for one in lists]
        self._tables.append(pl.DataFrame(rows, self._schema, orient="row"))

    def close(self) -> None:
        pl.concat(self._tables).write_parquet(self._path, compression="zstd")


WRITERS: dict[str, type[JsonLinesWriter] | type[ParquetWriter]] = {"jsonl": JsonLinesWriter, "parquet": ParquetWriter}
