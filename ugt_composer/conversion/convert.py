"""Converts JSON Lines to a folder of MDS shards: input files, partitions, an engine, one index, a manifest."""

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ugt_composer.catalogue.id_set import SemanticIdSet
from ugt_composer.conversion.action_names import action_names
from ugt_composer.conversion.counts import Counts
from ugt_composer.conversion.known_items import KnownItems, known_items
from ugt_composer.conversion.manifest import InputFacts, write_manifest
from ugt_composer.conversion.output import OutputFolder, output_folder
from ugt_composer.conversion.partition import QUARANTINE_NAME, PartitionResult, convert_partition
from ugt_composer.conversion.parts import new_part, part_name
from ugt_composer.conversion.remote_output import RemoteOutput, remote_output
from ugt_composer.conversion.report import reasons
from ugt_composer.conversion.settings import Settings
from ugt_composer.conversion.shards import write_index
from ugt_composer.conversion.workers import LocalEngine
from ugt_composer.errors import UserError
from ugt_composer.jsonl.sources import Partition, Source, TextPiece, find_sources, partitions
from ugt_composer.jsonl.text_ranges import text_pieces
from ugt_composer.storage.s3_url import Address, is_url


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


class Engine(Protocol):
    """Converts partitions, somewhere, see `LocalEngine`."""

    def run(
        self, partitions: Sequence[Partition], place: str, settings: Settings, known: SemanticIdSet | None
    ) -> Generator[tuple[str, PartitionResult], None, None]: ...


def convert(
    inputs: Sequence[str], out: str | Path, settings: Settings, engine: Engine | None = None, overwrite: bool = False
) -> Conversion:
    """Converts all rows of `inputs` to `out`, which appears only if the conversion succeeds.

    Args:
        inputs: files and folders, also s3://bucket/prefix.
        out: a folder, or s3://bucket/prefix.
        engine: what converts the partitions, by default this process. The output is the same for all.

    Raises:
        UserError: for input, options or rows that the user has to fix.
    """
    engine = engine or LocalEngine()
    url = str(out) if is_url(str(out)) else None
    sources = find_sources(inputs, Path(out) if url is None else Address(url))
    known, warning = known_items(settings.catalogue, sources)
    names, names_warning = action_names(settings.actions, sources)
    if names is not None:
        settings = replace(settings, largest_action=len(names))
    with output_folder(Path(out), overwrite) if url is None else remote_output(url, overwrite) as output:
        ids = None if known is None else known.ids
        merged = _Merger(output, sources)
        # Closed here, so that no worker is still writing when a bad row removes the work folder.
        with closing(engine.run(partitions(sources, settings.range_bytes), output.parts, settings, ids)) as results:
            for part, result in results:
                merged.add(part, result)
        if merged.counts.with_actions == 0:  # a file beside rows that have no actions is not about them
            names = names_warning = None
        return _finish(merged, settings, known, names, tuple(filter(None, (warning, names_warning))))


# Converts the ranges of a text somewhere, called with the place for parts, the settings and the known items: yields the
# part and the result of each range in order.
RunRanges = Callable[[str, Settings, SemanticIdSet | None], Iterable[tuple[str, PartitionResult]]]


def convert_text(
    run: RunRanges,
    path: str,
    out: Path,
    settings: Settings,
    known: KnownItems | None,
    actions: tuple[str, ...] | None,
) -> Conversion:
    """Writes the same folder as `convert` for a file `path` with a text. The file need not exist.

    Args:
        run: converts the text, see `convert_chunks`.
        out: a folder that does not exist yet, or is empty.
        known: the catalogue that items are checked against, None for no check. `settings.catalogue` is not read.
        actions: the names of the rows' actions, None if they have none. `settings.actions` is not read.

    Raises:
        UserError: for rows that the user has to fix; also if there is no row.
    """
    if actions is not None:
        settings = replace(settings, largest_action=len(actions))
    with output_folder(out, overwrite=False) as output:
        merged = _Merger(output, [Source(path, 0)])
        for part, result in run(output.parts, settings, None if known is None else known.ids):
            merged.add(part, result)
        return _finish(merged, settings, known, actions if merged.counts.with_actions else None, ())


def convert_chunks(
    chunks: Iterable[bytes], path: str, place: str, settings: Settings, known: SemanticIdSet | None
) -> Iterator[tuple[str, PartitionResult]]:
    """Converts a text in this process; only about `settings.range_bytes` of it are in memory at a time.

    Args:
        chunks: the text, each of whole lines.
        path: of the file that has the text.
        place: where parts are written.
    """
    for number, piece in enumerate(text_pieces(chunks, path, settings.range_bytes)):
        part = part_name(number)
        yield part, convert_piece(piece, part, place, settings, known)


def convert_piece(
    piece: TextPiece, part: str, place: str, settings: Settings, known: SemanticIdSet | None
) -> PartitionResult:
    with new_part(place, part) as folder:
        return convert_partition((piece,), folder, settings, known, lambda new: None)


class _Merger:
    """Merges the partitions' shards and quarantined rows in input order."""

    def __init__(self, output: OutputFolder | RemoteOutput, sources: Sequence[Source]):
        self.output, self.sources = output, sources
        self.counts, self.inputs = Counts(), InputFacts(sources)
        self.shards: list[dict[str, Any]] = []
        self.first_outside: str | None = None

    def add(self, part: str, result: PartitionResult) -> None:
        if result.error:
            error = result.error
            line = self.inputs.lines[error.source] + error.line
            raise UserError(f"{self.sources[error.source].path}:{line}: {error.message}")
        if result.outside and self.first_outside is None:
            outside = result.outside
            line = self.inputs.lines[outside.source] + outside.line
            self.first_outside = f"{self.sources[outside.source].path}:{line} ({outside.item})"
        if result.counts.bad_rows:
            self._add_quarantine(part)
        for shard in result.shards:
            self._add_shard(part, shard)
        for piece in result.pieces:
            self.inputs.add(piece.source, piece.lines, piece.digest)
        self.counts.add(result.counts)
        self.output.end_part(part)

    def _add_shard(self, part: str, shard: dict[str, Any]) -> None:
        """Gives a shard its number in the output."""
        stored = shard["zip_data"] or shard["raw_data"]
        basename = stored["basename"]
        for facts in filter(None, (shard["raw_data"], shard["zip_data"])):
            ending = facts["basename"].split(".", 2)[2]
            facts["basename"] = f"shard.{len(self.shards):05}.{ending}"
        self.output.add_shard(part, basename, stored["bytes"], stored["basename"])
        self.shards.append(shard)

    def _add_quarantine(self, part: str) -> None:
        """Appends quarantined rows, converting line numbers within the worker's piece to those in the file."""
        first_lines = {source.path: self.inputs.lines[at] for at, source in enumerate(self.sources)}
        with open(self.output.work / QUARANTINE_NAME, "a", encoding="ascii") as merged:
            for text in self.output.quarantined(part):
                entry = json.loads(text)
                entry["line"] += first_lines[entry["file"]]
                merged.write(json.dumps(entry) + "\n")


def _finish(
    merged: _Merger,
    settings: Settings,
    known: KnownItems | None,
    actions: tuple[str, ...] | None,
    warnings: tuple[str, ...],
) -> Conversion:
    counts, output = merged.counts, merged.output
    rows = counts.rows + counts.bad_rows
    if counts.bad_rows and (counts.bad_rows > settings.max_error_rate * rows or not counts.rows):
        quarantine = output.keep_quarantine()
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
