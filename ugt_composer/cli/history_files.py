"""The files that `ugt recommend` reads histories from: JSON Lines, Parquet, folders of shards. They are streamed, and a
file can be read from the beginning of any part."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from ugt_composer.cli.histories import LARGEST_LINE, History, HistoryReader
from ugt_composer.data.integrity import INDEX_NAME, MANIFEST_NAME
from ugt_composer.errors import UserError, where_searched
from ugt_composer.jsonl.lines import TruncatedStream, read_blocks
from ugt_composer.jsonl.sources import COMPRESSED_ENDINGS, ENDINGS, Piece
from ugt_composer.storage.hashed_file import file_hash
from ugt_composer.storage.input_files import visible_files

if TYPE_CHECKING:
    from ugt_composer.catalogue.catalogue import Catalogue
    from ugt_composer.config.schema import Config

HASH = "xxh3_128"
PARQUET = ".parquet"
STANDARD_INPUT = "-"
UTF8_BOM = b"\xef\xbb\xbf"
EXAMPLE = 'a history such as {"items": ["item-1", "item-2"]}'

Start = tuple[int, ...]  # where a part of a file begins; what the numbers mean is the file's own affair


class Scan(NamedTuple):
    """What a file holds.

    Attributes:
        users: how many.
        starts: where each part begins.
        hash: of what the file holds.
    """

    users: int
    starts: list[Start]
    hash: str


class HistoryFile(ABC):
    """Histories under one path."""

    def __init__(self, path: str):
        self.path = path

    @abstractmethod
    def scan(self, users_per_part: int) -> Scan:
        """Reads the file once, without looking into the objects. UserError if it cannot be read."""

    @abstractmethod
    def read(self, reader: HistoryReader, start: Start | None = None) -> Iterator[History]:
        """Its histories, from `start` on. UserError if one is not valid."""


class JsonFile(HistoryFile):
    """One object, or JSON Lines, perhaps compressed; standard input under the path "-". A start is the offset in the
    decompressed file and the number of lines before it."""

    def scan(self, users_per_part: int) -> Scan:
        users = 0
        starts: list[Start] = []
        for offset, number, _ in self._objects((0, 0)):
            if users % users_per_part == 0:
                starts.append((offset, number - 1))
            users += 1
        return Scan(users, starts, file_hash(HASH, Path(self.path)))

    def read(self, reader: HistoryReader, start: Start | None = None) -> Iterator[History]:
        for _, number, text in self._objects(start or (0, 0)):
            yield reader.of_line(text, f"{self.path}:{number}", f"line-{number}")

    def _objects(self, start: Start) -> Iterator[tuple[int, int, bytes]]:
        """(offset, line, text) of each line that is not blank; of one object on several lines, all of it."""
        lines = self._lines(start)
        for offset, number, text in self._as_one_object(lines) if start == (0, 0) else lines:
            if text.strip():
                yield offset, number, text.rstrip(b"\r\n")

    def _as_one_object(self, lines: Iterator[tuple[int, int, bytes]]) -> Iterator[tuple[int, int, bytes]]:
        """All lines as one if the first one does not end with a brace; else the lines."""
        first = next((line for line in lines if line[2].strip()), None)
        if first is None:
            return iter(())
        if first[2].strip().endswith(b"}"):
            return chain([first], lines)
        rest: list[bytes] = []
        size = 0
        for _, number, text in lines:
            rest.append(text)
            size += len(text)
            if size > LARGEST_LINE:
                raise UserError(f"{self.path}:{number}: found no end of the object that begins in line {first[1]}")
        return iter([(0, 1, first[2] + b"".join(rest)) if b"".join(rest).strip() else first])

    def _lines(self, start: Start) -> Iterator[tuple[int, int, bytes]]:
        """(offset, line, text) of each line."""
        offset, number = start
        try:
            for raw in self._raw(offset):
                for line in raw.splitlines(keepends=True):
                    number += 1
                    yield offset, number, line.removeprefix(UTF8_BOM) if offset == 0 else line
                    offset += len(line)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be read ({error.strerror}){where_searched(self.path)}; expected JSON, Parquet or "
                "a folder of shards with histories"
            ) from None
        except TruncatedStream as error:
            raise UserError(f"{self.path}: found {error}, expected a complete one; copy or create it again") from None

    def _raw(self, offset: int) -> Iterator[bytes]:
        """The bytes from `offset` on, in pieces that end where a line ends."""
        if self.path == STANDARD_INPUT:
            yield from sys.stdin.buffer
        elif self.path.endswith(COMPRESSED_ENDINGS):
            size = Path(self.path).stat().st_size
            for block in read_blocks(Piece(0, self.path, 0, size, size), LARGEST_LINE, xxhash.xxh3_128()):
                if block.too_long:
                    raise UserError(f"{self.path}: found a line of {block.too_long:,} bytes, expected fewer")
                if offset < len(block.data):
                    yield block.data[offset:]
                offset = max(0, offset - len(block.data))
        else:
            with open(self.path, "rb") as file:
                if offset:
                    file.seek(offset)
                yield from file


class ShardFolder(HistoryFile):
    """A folder of recommend rows in shards, whose targets are not read. A start is the number of rows before it."""

    def scan(self, users_per_part: int) -> Scan:
        from ugt_composer.data.manifest import read_manifest

        manifest = read_manifest(self.path)
        return Scan(manifest.rows, [(row,) for row in range(0, manifest.rows, users_per_part)], manifest.index_hash)

    def read(self, reader: HistoryReader, start: Start | None = None) -> Iterator[History]:
        from ugt_composer.data.codec import decode_row
        from ugt_composer.data.evaluation_dataset import RowFolder

        rows = RowFolder(self.path, None)
        (first,) = start or (0,)
        for number in range(first, len(rows)):
            yield reader.of_row(decode_row(rows[number]))


def history_files(path: str) -> Sequence[HistoryFile]:
    """The files of a path: itself, or the files of a folder in the order of their names.

    Raises:
        UserError: the folder has no such files, or several kinds of them.
    """
    from ugt_composer.cli.history_tables import ParquetFile

    folder = Path(path)
    if not folder.is_dir():
        return [ParquetFile(path) if path.endswith(PARQUET) else JsonFile(path)]
    if (folder / MANIFEST_NAME).exists() or (folder / INDEX_NAME).exists():
        return [ShardFolder(path)]
    paths = [str(file) for file in visible_files(folder)]
    tables = [ParquetFile(file) for file in paths if file.endswith(PARQUET)]
    lines = [JsonFile(file) for file in paths if file.endswith(ENDINGS)]
    if tables and lines:
        raise UserError(
            f"{path}: holds Parquet ({tables[0].path}) and JSON ({lines[0].path}); expected files of one kind"
        )
    if not tables and not lines:
        expected = ", ".join((PARQUET, *ENDINGS))
        raise UserError(f"{path}: no file in this folder ends in {expected}, and it is no folder of shards")
    return tables or lines


def check_history(
    path: str, checkpoint: str, config: "Config", facts: dict[str, str], catalogue: "Catalogue | None"
) -> None:
    """UserError if the history is a folder of shards that do not fit the model."""
    from ugt_composer.cli.loading import recommend_rows

    if path != STANDARD_INPUT and isinstance(history_files(path)[0], ShardFolder):
        recommend_rows("--history", [path], checkpoint, config, facts, catalogue)


def read_histories(path: str, reader: HistoryReader) -> Iterator[History]:
    """The histories of all files of a path. UserError if there are none, or one is not valid."""
    histories = chain.from_iterable(file.read(reader) for file in history_files(path))
    first = next(histories, None)
    if first is None:
        raise no_histories(path)
    return chain([first], histories)


def no_histories(path: str) -> UserError:
    return UserError(f"{path}: is empty; expected {EXAMPLE}")
