"""Converts JSON Lines to a folder of MDS shards: input files, partitions, workers, one index, a manifest."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ugt_composer.conversion.action_names import action_names
from ugt_composer.conversion.counts import Counts
from ugt_composer.conversion.known_items import KnownItems, known_items
from ugt_composer.conversion.manifest import InputFacts, write_manifest
from ugt_composer.conversion.output import OutputFolder, output_folder
from ugt_composer.conversion.partition import QUARANTINE_NAME, PartitionResult, convert_partition
from ugt_composer.conversion.report import reasons
from ugt_composer.conversion.settings import Settings
from ugt_composer.conversion.shards import write_index
from ugt_composer.conversion.workers import part_folder, run_partitions
from ugt_composer.errors import UserError
from ugt_composer.jsonl.sources import Source, find_sources, partitions
from ugt_composer.jsonl.text_ranges import text_pieces


@dataclass(frozen=True)
class Conversion:
    """What was written: the counts, the number of shards and their size on disk in bytes.

    `catalogue` is what the items were checked against, None if they were not; `warnings` are sentences for the user.
    """

    counts: Counts
    shards: int
    shard_bytes: int
    catalogue: KnownItems | None = None
    warnings: tuple[str, ...] = ()


def convert(
    inputs: Sequence[str],
    out: Path,
    settings: Settings,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int], Callable[[int], None]] | None = None,
) -> Conversion:
    """Converts all rows of `inputs` into the folder `out`, which appears only if the conversion succeeds.

    Args:
        inputs: files and folders.
        progress: called with the input's size in bytes; returns a function that is called with the bytes done since
            its last call.

    Raises:
        UserError: for input, options or rows that the user has to fix.
    """
    if workers < 1:
        raise UserError(f"--workers {workers} is less than 1")
    sources = find_sources(inputs, out)
    on_progress = progress(sum(source.size for source in sources)) if progress else lambda new: None
    known, warning = known_items(settings.catalogue, sources)
    names, names_warning = action_names(settings.actions, sources)
    if names is not None:
        settings = replace(settings, largest_action=len(names))
    with output_folder(out, overwrite) as output:
        parts = partitions(sources, settings.range_bytes)
        merged = _Merger(output.work, sources)
        ids = None if known is None else known.ids
        # Closed here, so that no worker is still writing when a bad row removes the work folder.
        with closing(run_partitions(parts, output.work, settings, ids, workers, on_progress)) as results:
            for number, result in enumerate(results):
                merged.add(part_folder(output.work, number), result)
        if merged.counts.with_actions == 0:  # a file beside rows that have no actions is not about them
            names = names_warning = None
        return _finish(merged, output, settings, known, names, tuple(filter(None, (warning, names_warning))))


def convert_text(
    chunks: Iterable[bytes],
    path: str,
    out: Path,
    settings: Settings,
    known: KnownItems | None,
    actions: tuple[str, ...] | None,
) -> Conversion:
    """Writes the same folder as `convert` for a file `path` with this text, in this process. The file need not exist.

    Args:
        chunks: the text, each of whole lines; only about `settings.range_bytes` of it are in memory at a time.
        out: a folder that does not exist yet, or is empty.
        known: the catalogue that items are checked against, None for no check. `settings.catalogue` is not read.
        actions: the names of the rows' actions, None if they have none. `settings.actions` is not read.

    Raises:
        UserError: for rows that the user has to fix; also if there is no row.
    """
    if actions is not None:
        settings = replace(settings, largest_action=len(actions))
    with output_folder(out, overwrite=False) as output:
        merged = _Merger(output.work, [Source(path, 0)])
        for number, piece in enumerate(text_pieces(chunks, path, settings.range_bytes)):
            folder = part_folder(output.work, number)
            folder.mkdir()
            ids = None if known is None else known.ids
            merged.add(folder, convert_partition((piece,), folder, settings, ids, lambda new: None))
        return _finish(merged, output, settings, known, actions if merged.counts.with_actions else None, ())


class _Merger:
    """Merges the partitions' shards and quarantined rows in input order."""

    def __init__(self, work: Path, sources: Sequence[Source]):
        self.work, self.sources = work, sources
        self.counts, self.inputs = Counts(), InputFacts(sources)
        self.shards: list[dict[str, Any]] = []
        self.first_outside: str | None = None

    def add(self, folder: Path, result: PartitionResult) -> None:
        if result.error:
            error = result.error
            line = self.inputs.lines[error.source] + error.line
            raise UserError(f"{self.sources[error.source].path}:{line}: {error.message}")
        if result.outside and self.first_outside is None:
            outside = result.outside
            line = self.inputs.lines[outside.source] + outside.line
            self.first_outside = f"{self.sources[outside.source].path}:{line} ({outside.item})"
        if result.counts.bad_rows:
            self._add_quarantine(folder / QUARANTINE_NAME)
        for shard in result.shards:
            self._add_shard(folder, shard)
        for piece in result.pieces:
            self.inputs.add(piece.source, piece.lines, piece.digest)
        self.counts.add(result.counts)
        shutil.rmtree(folder)

    def _add_shard(self, folder: Path, shard: dict[str, Any]) -> None:
        """Checks that a shard was written completely, and moves it to its number in the output."""
        stored = shard["zip_data"] or shard["raw_data"]
        file = folder / stored["basename"]
        if file.stat().st_size != stored["bytes"]:
            raise OSError(f"{file}: {file.stat().st_size} bytes were written, {stored['bytes']} expected")
        for facts in filter(None, (shard["raw_data"], shard["zip_data"])):
            ending = facts["basename"].split(".", 2)[2]
            facts["basename"] = f"shard.{len(self.shards):05}.{ending}"
        os.rename(file, self.work / stored["basename"])
        self.shards.append(shard)

    def _add_quarantine(self, file: Path) -> None:
        """Appends quarantined rows, converting line numbers within the worker's piece to those in the file."""
        first_lines = {source.path: self.inputs.lines[at] for at, source in enumerate(self.sources)}
        with open(file, encoding="ascii") as part, open(self.work / QUARANTINE_NAME, "a", encoding="ascii") as merged:
            for text in part:
                entry = json.loads(text)
                entry["line"] += first_lines[entry["file"]]
                merged.write(json.dumps(entry) + "\n")


def _finish(
    merged: _Merger,
    output: OutputFolder,
    settings: Settings,
    known: KnownItems | None,
    actions: tuple[str, ...] | None,
    warnings: tuple[str, ...],
) -> Conversion:
    counts = merged.counts
    rows = counts.rows + counts.bad_rows
    if counts.bad_rows and (counts.bad_rows > settings.max_error_rate * rows or not counts.rows):
        quarantine = output.out.with_name(f"{output.out.name}.{QUARANTINE_NAME}")
        os.replace(output.work / QUARANTINE_NAME, quarantine)
        are, they_are = ("is", "it is") if counts.bad_rows == 1 else ("are", "they are")
        raise UserError(
            f"{counts.bad_rows:,} of {rows:,} rows {are} bad (--max-error-rate {settings.max_error_rate}); "
            f"{they_are} in {quarantine}, nothing else was written:\n{reasons(counts)}"
        )
    if not counts.rows:
        raise UserError(f"{', '.join(source.path for source in merged.sources[:3])}: no rows in the input")
    if sum(shard["samples"] for shard in merged.shards) != counts.rows:
        raise RuntimeError("the shards do not hold the rows that were counted")
    write_index(output.work, merged.shards)
    outside = None if known is None else known.problem(counts.items, merged.first_outside, settings)
    warnings = (*warnings, *filter(None, [outside]))
    write_manifest(output.work, settings, counts, merged.inputs, known, actions, warnings)
    output.publish()
    sizes = [(shard["zip_data"] or shard["raw_data"])["bytes"] for shard in merged.shards]
    return Conversion(counts, len(sizes), sum(sizes), known, warnings)
