"""Writes the rows of an import as folders of shards, without files of JSON Lines.

The folders are, byte for byte, what the conversion makes of those files with the catalogue that lies beside them.
"""

import io
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import polars as pl

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.conversion.action_names import read_action_names
from ugt_composer.conversion.convert import RunRanges, convert_chunks, convert_text
from ugt_composer.conversion.known_items import CATALOGUE_NAME, KnownItems
from ugt_composer.conversion.settings import Settings
from ugt_composer.jsonl.schema import ACTIONS_NAME

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
        return self.convert(folder, name, kind, codebook_sizes, partial(convert_chunks, text, str(self.out / name)))

    def convert(self, folder: Path, name: str, kind: str, codebook_sizes: tuple[int, ...], run: RunRanges) -> str:
        """Like `write`, of rows, one at least, whose text `run` converts."""
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
