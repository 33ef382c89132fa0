"""The engine of an import that runs on Spark."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl
from tqdm import tqdm

from ugt_composer.importing.log import Log
from ugt_composer.importing.partitions import Partitions
from ugt_composer.importing.rows import Ids, RowCounts, UserRows, kind_of, row_blocks, write_rows
from ugt_composer.importing.settings import SourceSettings
from ugt_composer.importing.spark_reader import read_with_spark
from ugt_composer.spark.partitions import SparkPartitions, attempt_name

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PARTS = "parts"  # folder of the files that tasks write
COPY_BYTES = 1 << 24


class PartitionsWriter(Protocol):
    """What writes rows of partitions in another form than JSON Lines."""

    def write_partitions(
        self,
        folder: Path,
        name: str,
        kind: str,
        codebook_sizes: tuple[int, ...],
        partitions: SparkPartitions[Any],
        blocks: Callable[[Any], Iterator[pl.DataFrame]],
    ) -> None:
        """Writes rows of a kind, one at least, to a folder in `folder` that is named like the file without its ending.

        Args:
            name: of the file of JSON Lines that has these rows.
            blocks: a partition → its rows, in blocks that have the keys of JSON Lines as columns.
        """
        ...


class SparkEngine:
    """Interactions and rows are in Spark's executors; semantic IDs are made on the driver."""

    def __init__(self, session: "SparkSession", writer: PartitionsWriter | None = None):
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
            stem = Path(name).stem
            if counts.rows[name]:
                blocks = partial(_blocks, name, ids, counts)
                self._writer.write_partitions(folder, name, kind_of(name), ids.codebook_sizes, rows, blocks)
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
    attempt = attempt_name()
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


def _blocks(name: str, ids: Ids, counts: RowCounts, rows: UserRows) -> Iterator[pl.DataFrame]:
    return row_blocks(rows, name, ids, counts)
