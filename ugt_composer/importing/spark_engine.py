"""The engine of an import that runs on Spark."""

import os
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ugt_composer.catalogue.id_set import SemanticIdSet
from ugt_composer.conversion.convert import RunRanges, convert_piece
from ugt_composer.conversion.import_shards import ENDING, ShardFolders, json_lines
from ugt_composer.conversion.partition import PartitionResult
from ugt_composer.conversion.parts import part_name
from ugt_composer.conversion.settings import Settings
from ugt_composer.importing.log import Log
from ugt_composer.importing.partitions import Partitions
from ugt_composer.importing.rows import Ids, RowCounts, UserRows, kind_of, row_blocks, write_rows
from ugt_composer.importing.settings import SourceSettings
from ugt_composer.importing.spark_partitions import SparkPartitions
from ugt_composer.importing.spark_reader import read_with_spark
from ugt_composer.jsonl.sources import TextPiece
from ugt_composer.jsonl.text_ranges import count_ranges, cut_ranges

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PARTS = "parts"  # folder of the files that tasks write
COPY_BYTES = 1 << 24


class SparkEngine:
    """Interactions and rows are in Spark's executors; semantic IDs are made on the driver."""

    def __init__(self, session: "SparkSession", writer: ShardFolders | None = None):
        """Args:
        writer: None: rows are written as JSON Lines.
        """
        self._session, self._writer = session, writer

    def read(self, source: SourceSettings) -> Log:
        return read_with_spark(self._session.sparkContext, source)

    def write(self, rows: Partitions[UserRows], counts: RowCounts, ids: Ids, folder: Path) -> dict[str, int]:
        """Each task writes files of its own, under a name that no other attempt of it has; those of the attempts whose
        results Spark takes are joined in order."""
        if self._writer is None:
            return _write_json_lines(rows, counts, ids, folder)
        assert isinstance(rows, SparkPartitions)
        written = {}
        for name in counts.files:
            stem = name.removesuffix(ENDING)
            if counts.rows[name]:
                kind, run = kind_of(name), _ranges_of(rows, name, ids, counts, str(self._writer.out / name))
                stem = self._writer.convert(folder, name, kind, ids.codebook_sizes, run)
            written[stem] = counts.rows[name]
        return written


def _write_json_lines(rows: Partitions[UserRows], counts: RowCounts, ids: Ids, folder: Path) -> dict[str, int]:
    parts = folder / PARTS
    parts.mkdir()
    try:
        written = rows.map(_write_parts, counts, ids, parts)
        for name in counts.files:
            _join([files[name] for files in written], folder / name)
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    return {name: counts.rows[name] for name in counts.files}


def _write_parts(rows: UserRows, counts: RowCounts, ids: Ids, folder: Path) -> dict[str, Path]:
    attempt = _attempt()
    files = {name: folder / f"{attempt}.{name}" for name in counts.files}
    for name, path in files.items():
        with path.open("wb") as file:
            write_rows(row_blocks(rows, name, ids, counts), file)
            file.flush()
            os.fsync(file.fileno())
    return files


def _join(parts: list[Path], path: Path) -> None:
    """Writes the parts one after the other, and deletes each."""
    total = sum(part.stat().st_size for part in parts)
    with (
        path.open("wb") as whole,
        tqdm(total=total, unit="B", unit_scale=True, desc=path.name, disable=None, leave=False) as bar,
    ):
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole, COPY_BYTES)
            bar.update(part.stat().st_size)
            part.unlink()


def _ranges_of(rows: SparkPartitions[UserRows], name: str, ids: Ids, counts: RowCounts, path: str) -> RunRanges:
    """Converts the text of a file, of which each partition has a part: ranges come together by Spark's shuffle."""

    def run(place: str, settings: Settings, known: SemanticIdSet | None) -> Iterable[tuple[str, PartitionResult]]:
        sizes = rows.map(_text_bytes, name, ids, counts)
        starts = [0, *accumulate(sizes)]
        ranges = rows.shuffled(
            partial(_cut, name, ids, counts, starts, settings.range_bytes),
            partial(_convert_range, path, place, settings, known),
            count_ranges(starts[-1], settings.range_bytes),
        )
        return ranges.map(_same)

    return run


def _texts(rows: UserRows, name: str, ids: Ids, counts: RowCounts) -> Iterator[bytes]:
    return map(json_lines, row_blocks(rows, name, ids, counts))


def _text_bytes(rows: UserRows, name: str, ids: Ids, counts: RowCounts) -> int:
    return sum(map(len, _texts(rows, name, ids, counts)))


def _cut(
    name: str, ids: Ids, counts: RowCounts, starts: list[int], range_bytes: int, number: int, rows: UserRows
) -> Iterator[tuple[int, bytes]]:
    """The ranges of a partition's text.

    Args:
        starts: where the text of each partition starts in the whole one.
    """
    return cut_ranges(_texts(rows, name, ids, counts), range_bytes, starts[number])


def _convert_range(
    path: str, place: str, settings: Settings, known: SemanticIdSet | None, number: int, texts: list[bytes]
) -> tuple[str, PartitionResult]:
    piece = TextPiece(0, path, number * settings.range_bytes, b"".join(texts))
    part = f"{part_name(number)}.{_attempt()}"
    return part, convert_piece(piece, part, place, settings, known)


def _same(result: tuple[str, PartitionResult]) -> tuple[str, PartitionResult]:
    return result


def _attempt() -> str:
    """A name that no other attempt at any task has."""
    from pyspark import TaskContext

    task = TaskContext.get()
    assert task is not None
    return f"{task.stageId()}-{task.partitionId()}-{task.taskAttemptId()}"
