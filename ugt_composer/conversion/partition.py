"""Converts one partition of the input into its own shards: the work of one worker."""

import base64
import gc
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import xxhash

from ugt_composer.catalogue.id_set import SemanticIdSet
from ugt_composer.catalogue.outside import outside_items
from ugt_composer.conversion.bulk_parse import BulkParser
from ugt_composer.conversion.bulk_rows import convert_rows
from ugt_composer.conversion.canonical import canonical_row
from ugt_composer.conversion.columns import IrregularRows, strict_numbers
from ugt_composer.conversion.counts import Counts
from ugt_composer.conversion.rows import check_row, too_long
from ugt_composer.conversion.settings import FAIL, Settings
from ugt_composer.conversion.shards import ShardWriter
from ugt_composer.data.codec import encode_row
from ugt_composer.data.row_batch import RowBatch, batch_of, encode_rows
from ugt_composer.jsonl.bad_row import LINE, BadRow
from ugt_composer.jsonl.lines import KEPT_BYTES, Block, TruncatedStream, read_blocks
from ugt_composer.jsonl.sources import AnyPiece, Partition

QUARANTINE_NAME = "quarantine.jsonl"
BOM = b"\xef\xbb\xbf"
FEWEST_BULK_ROWS = 8  # for fewer rows, NumPy's cost per call outweighs the gain


@dataclass
class PieceFacts:
    """Facts about a piece after reading it; the digest is its xxh3_128."""

    source: int
    lines: int
    digest: str


@dataclass
class FirstError:
    """The bad row that ended a partition: its source, its line in the piece (counted from 1), and the message."""

    source: int
    line: int
    message: str


@dataclass
class FirstOutside:
    """The first item of a partition that the catalogue lacks, with its source and line like a `FirstError`."""

    source: int
    line: int
    item: str


@dataclass
class PartitionResult:
    """`shards` are entries of the index, `pieces` are in order, `error` is the first bad row with --on-error fail."""

    counts: Counts = field(default_factory=Counts)
    shards: list[dict[str, Any]] = field(default_factory=list)
    pieces: list[PieceFacts] = field(default_factory=list)
    error: FirstError | None = None
    outside: FirstOutside | None = None


class _Stop(Exception):
    """Ends a partition at a bad row with --on-error fail."""


def convert_partition(
    partition: Partition,
    folder: Path,
    settings: Settings,
    known: SemanticIdSet | None,
    on_progress: Callable[[int], None],
) -> PartitionResult:
    """Writes the shards and quarantined rows of a partition to an existing empty folder.

    Args:
        known: the semantic IDs of the catalogue; None if items are not checked.
        on_progress: called with the input bytes, as on disk, done since the last call.
    """
    with strict_numbers(), _without_gc(), open(folder / QUARANTINE_NAME, "w", encoding="ascii") as quarantine:
        converter = _PartitionConverter(folder, settings, known, quarantine)
        try:
            for piece in partition:
                converter.convert(piece, on_progress)
        except _Stop:
            return converter.result
        converter.writer.close()
        converter.result.shards = converter.writer.shards
    if not converter.result.counts.bad_rows:
        (folder / QUARANTINE_NAME).unlink()
    return converter.result


@contextmanager
def _without_gc() -> Iterator[None]:
    """Disables garbage collection: rows make no reference cycles, and searching for them takes 5% of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _PartitionConverter:
    def __init__(self, folder: Path, settings: Settings, known: SemanticIdSet | None, quarantine: IO[str]):
        self.settings, self.known, self.quarantine = settings, known, quarantine
        self.writer = ShardWriter(folder, settings.compression, settings.hashes, settings.size_limit)
        self.parser = BulkParser(settings.kind)
        self.result = PartitionResult()
        self._piece: AnyPiece
        self._lines = 0  # lines of the piece before the current block

    def convert(self, piece: AnyPiece, on_progress: Callable[[int], None]) -> None:
        hasher = xxhash.xxh3_128()
        self._piece, self._lines = piece, 0
        reported = 0
        try:
            for block in read_blocks(piece, self.settings.max_line_bytes, hasher):
                self._convert_block(block, at_start=piece.start == 0 and self._lines == 0)
                if not piece.compressed:
                    on_progress(len(block.data))
                    reported += len(block.data)
        except TruncatedStream as error:
            bad_row = BadRow(LINE, "cut short", str(error), "a complete file; the lines after this one are lost")
            self._bad_row(self._lines + 1, error.rest, bad_row, complete=False)
        on_progress(piece.size - reported)
        self.result.pieces.append(PieceFacts(piece.source, self._lines, hasher.hexdigest()))

    def _convert_block(self, block: Block, at_start: bool) -> None:
        if block.too_long:
            self._bad_row(self._lines + 1, block.data, too_long(block.too_long, self.settings), complete=False)
            self._lines += 1
            return
        lines = block.data.split(b"\n")
        if not lines[-1]:
            lines.pop()
        if at_start and lines[0].startswith(BOM):
            lines[0] = lines[0][len(BOM) :]
        not_blank = [at for at, line in enumerate(lines) if line.strip()]
        self.result.counts.blank_lines += len(lines) - len(not_blank)
        texts = [lines[at] for at in not_blank] if len(not_blank) < len(lines) else lines
        self._convert_lines(texts, not_blank, last_complete=block.data.endswith(b"\n"))
        self._lines += len(lines)

    def _convert_lines(self, lines: Sequence[bytes], numbers: Sequence[int], last_complete: bool) -> None:
        """Converts `lines`, whose numbers in the block are `numbers`, in order.

        If they cannot be converted in bulk, each half is tried, so that a bad row slows down only a few neighbours.
        """
        if len(lines) < FEWEST_BULK_ROWS:
            for at, (line, number) in enumerate(zip(lines, numbers, strict=True)):
                self._convert_line(line, number, last_complete or at < len(lines) - 1)
            return
        try:
            if max(map(len, lines)) > self.settings.max_line_bytes:
                raise IrregularRows
            batch = convert_rows(self.parser.parse(lines), self.settings, self.result.counts)
        except IrregularRows:
            half = len(lines) // 2
            self._convert_lines(lines[:half], numbers[:half], last_complete=True)
            self._convert_lines(lines[half:], numbers[half:], last_complete)
        else:
            self._check_items(batch, numbers)
            self.writer.add_rows(*encode_rows(batch))

    def _convert_line(self, line: bytes, number: int, complete: bool) -> None:
        counts = self.result.counts
        try:
            row = check_row(line, self.settings)
            canonical = canonical_row(row, self.settings, counts)
            packed = encode_row(canonical, self.settings.width)
        except BadRow as error:
            self._bad_row(self._lines + number + 1, line, error, complete)
        else:
            self._check_items(batch_of([canonical]), [number])
            self.writer.add_row(packed)
            self.parser.allow(row.ignored_keys)

    def _check_items(self, batch: RowBatch, numbers: Sequence[int]) -> None:
        """Counts the items, in rows whose lines in the block are `numbers`, that the catalogue lacks."""
        if self.known is None:
            return
        counts, first = outside_items(batch, self.known)
        self.result.counts.items.add(counts)
        if first and self.result.outside is None:
            item = min(first, key=lambda item: item.row)
            line = self._lines + numbers[item.row] + 1
            self.result.outside = FirstOutside(self._piece.source, line, str(item))

    def _bad_row(self, line: int, text: bytes, error: BadRow, complete: bool) -> None:
        message = str(error)
        if not complete and error.reason == "not JSON":
            message += "; the file does not end in a line feed, so it may have been cut off here"
        self.result.counts.bad_rows += 1
        self.result.counts.bad_reasons[error.key, error.reason] += 1
        if self.settings.on_error == FAIL:
            self.result.error = FirstError(self._piece.source, line, message)
            raise _Stop
        entry = {"file": self._piece.path, "line": line, "field": error.field, "reason": message, **_raw(text, error)}
        self.quarantine.write(json.dumps(entry) + "\n")


def _raw(line: bytes, error: BadRow) -> dict[str, Any]:
    """The text of a bad row, or its bytes if they are not UTF-8; only the beginning of a line that is too long."""
    line = line.rstrip(b"\r\n")
    if error.reason == "too long" and error.field == LINE:
        line = line[:KEPT_BYTES]
    try:
        return {"raw": line.decode("utf-8")}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(line).decode("ascii")}
