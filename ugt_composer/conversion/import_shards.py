"""Writes the rows of an import as folders of shards, without files of JSON Lines.

The folders are, byte for byte, what the conversion makes of those files with the catalogue that lies beside them.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import polars as pl

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.id_set import SemanticIdSet
from ugt_composer.conversion.action_names import read_action_names
from ugt_composer.conversion.convert import RunRanges, convert_chunks, convert_piece, convert_text
from ugt_composer.conversion.known_items import CATALOGUE_NAME, KnownItems
from ugt_composer.conversion.partition import PartitionResult
from ugt_composer.conversion.parts import part_name
from ugt_composer.conversion.settings import Settings
from ugt_composer.jsonl.schema import ACTIONS_NAME
from ugt_composer.jsonl.sources import TextPiece
from ugt_composer.jsonl.text_ranges import count_ranges, cut_ranges
from ugt_composer.spark.partitions import SparkPartitions, attempt_name

ENDING = ".jsonl"  # of the files that the folders stand for


class ShardFolders:
    """Writes rows as folders of shards in the place of files; rows of which there are none are not written.

    Args:
        out: the output folder of the import, as its user named it: where the manifests say that the catalogue is.
        settings: of the conversion; the kind and the sizes of the codebooks are replaced by those of the rows.
    """

    def __init__(self, out: Path, settings: Settings):
        self.out, self.settings = out, settings
        self._known: KnownItems | None = None

    def write(
        self, folder: Path, name: str, kind: str, codebook_sizes: tuple[int, ...], blocks: Iterator[pl.DataFrame]
    ) -> str:
        """Converts rows, in blocks that have the keys of JSON Lines as columns, to a folder in `folder`.

        The catalogue and, if there are any, the names of the actions are in `folder` already.

        Args:
            name: of the file that is not written, such as train.jsonl.

        Returns:
            The name of the folder, such as train.
        """
        first = next(blocks, None)
        if first is None:
            return name.removesuffix(ENDING)
        text = map(json_lines, chain([first], blocks))
        return self._convert(folder, name, kind, codebook_sizes, partial(convert_chunks, text, str(self.out / name)))

    def write_partitions(
        self,
        folder: Path,
        name: str,
        kind: str,
        codebook_sizes: tuple[int, ...],
        partitions: SparkPartitions[Any],
        blocks: Callable[[Any], Iterator[pl.DataFrame]],
    ) -> None:
        """Like `write`, of rows, one at least, that are made in Spark's executors.

        Args:
            blocks: a partition → its rows, in blocks.
        """
        run = partial(_convert_partitions, partitions, blocks, str(self.out / name))
        self._convert(folder, name, kind, codebook_sizes, run)

    def _convert(self, folder: Path, name: str, kind: str, codebook_sizes: tuple[int, ...], run: RunRanges) -> str:
        stem = name.removesuffix(ENDING)
        if self._known is None:
            items = Catalogue.load(folder / CATALOGUE_NAME, keep_arrays=False).columns
            self._known = KnownItems(Catalogue(items, str(self.out / CATALOGUE_NAME)), found=False)
        actions = folder / ACTIONS_NAME
        convert_text(
            run,
            str(self.out / name),
            folder / stem,
            replace(self.settings, kind=kind, codebook_sizes=codebook_sizes),
            self._known,
            read_action_names(actions) if actions.exists() else None,
        )
        return stem


def json_lines(block: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    block.write_ndjson(buffer)
    return buffer.getvalue()


def _convert_partitions(
    partitions: SparkPartitions[Any],
    blocks: Callable[[Any], Iterator[pl.DataFrame]],
    path: str,
    place: str,
    settings: Settings,
    known: SemanticIdSet | None,
) -> list[tuple[str, PartitionResult]]:
    """Converts the text of a file `path` of which partitions have a part each; Spark's shuffle joins ranges."""
    starts = [0, *accumulate(partitions.map(_text_bytes, blocks))]
    ranges = partitions.shuffled(
        partial(_cut, blocks, starts, settings.range_bytes),
        partial(_convert_range, path, place, settings, known),
        count_ranges(starts[-1], settings.range_bytes),
    )
    return ranges.map(_same)


def _text_bytes(partition: Any, blocks: Callable[[Any], Iterator[pl.DataFrame]]) -> int:
    return sum(len(json_lines(block)) for block in blocks(partition))


def _cut(
    blocks: Callable[[Any], Iterator[pl.DataFrame]], starts: list[int], range_bytes: int, number: int, partition: Any
) -> Iterator[tuple[int, bytes]]:
    """The ranges of a partition's text.

    Args:
        starts: where the text of each partition starts in the whole one.
    """
    return cut_ranges(map(json_lines, blocks(partition)), range_bytes, starts[number])


def _convert_range(
    path: str, place: str, settings: Settings, known: SemanticIdSet | None, number: int, texts: list[bytes]
) -> tuple[str, PartitionResult]:
    piece = TextPiece(0, path, number * settings.range_bytes, b"".join(texts))
    part = f"{part_name(number)}.{attempt_name()}"
    return part, convert_piece(piece, part, place, settings, known)


def _same(result: tuple[str, PartitionResult]) -> tuple[str, PartitionResult]:
    return result
