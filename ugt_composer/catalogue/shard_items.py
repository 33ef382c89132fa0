"""Checks that folders of shards and the catalogue come from the same import.

Shards record the fingerprint of the catalogue that they were converted with, and keep a copy of it. They are accepted
with this catalogue, and with any that contains its items with the same semantic IDs. For those that record none, the
items of a sample of rows are looked up in the catalogue.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from streaming.base.compression import decompress

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.extension import find_catalogue, not_contained
from ugt_composer.catalogue.id_set import SemanticIdSet
from ugt_composer.catalogue.outside import ItemCounts, outside_items
from ugt_composer.data.codec import decode_row
from ugt_composer.data.integrity import CATALOGUE_COPY, INDEX_NAME, ShardFacts, read_index
from ugt_composer.data.manifest import Manifest
from ugt_composer.data.row_batch import batch_of
from ugt_composer.data.shard_rows import ShardRows
from ugt_composer.errors import UserError

MOST_ROWS = 10_000  # of a folder, in the sample
MOST_SHARDS, MOST_ZIPPED_SHARDS = 40, 4  # that the sample's rows are read from
UNKNOWN_CONTENT = "its copy was not found, so it is not known which items differ"
SHORT = 12  # characters of a fingerprint in a message


def check_shards(
    manifests: Mapping[str, Sequence[Manifest]], catalogue: Catalogue | None, max_fraction: float
) -> list[str]:
    """Compares the fingerprints of folders and catalogue. Returns warnings: of items that the catalogue lacks, and
    of folders without a fingerprint.

    Args:
        manifests: by the key or option that names the folders, such as "data.train".
        catalogue: None if there is none; then the folders are compared with one another.
        max_fraction: of the items of a folder without a fingerprint that the catalogue may lack, for each kind of item.

    Raises:
        UserError: names both sides and how to fix it.
    """
    find = cache(_find_catalogue)
    folders = [(f"{manifest.folder} ({key})", manifest) for key, of_key in manifests.items() for manifest in of_key]
    _check_fingerprints(folders, catalogue, find)
    if catalogue is None:
        return []
    known = SemanticIdSet(catalogue.triples)
    warnings = []
    for name, manifest in folders:
        counts = ItemCounts(Counter(manifest.items), Counter(manifest.outside))
        if manifest.catalogue is None:
            counts = sample_items(manifest, known)
        if manifest.catalogue is None and not counts.outside.total():
            warnings.append(
                f"{name} does not record the catalogue that its rows were made with, so it is not known whether their "
                f"semantic IDs mean the items of {catalogue.source}; convert them again with --catalogue FILE"
            )
        if not counts.outside.total():
            continue
        problem = f"{name}: {catalogue.source} lacks {counts}"
        if manifest.catalogue is None and counts.above(max_fraction):
            raise UserError(
                f"{problem} in a sample of the rows, more than data.max_fraction_outside_catalogue {max_fraction:g}: "
                "the shards seem to come from another import than the catalogue; use the catalogue that was made with "
                f"these rows, {_fix(catalogue)}, or raise that key"
            )
        warnings.append(
            f"{problem}: they cannot be recommended, and where model.level_softmax is catalogue, their loss is constant"
        )
    return warnings


def _find_catalogue(fingerprint: str, folder: str, file: str | None) -> Catalogue | None:
    return find_catalogue(fingerprint, (Path(folder) / CATALOGUE_COPY, file))


Find = Callable[[str, str, str | None], Catalogue | None]


def _check_fingerprints(folders: Sequence[tuple[str, Manifest]], catalogue: Catalogue | None, find: Find) -> None:
    recorded = [(name, manifest) for name, manifest in folders if manifest.catalogue is not None]
    for name, manifest in recorded:
        source = f"{manifest.catalogue_file}, fingerprint {_short(manifest.catalogue)}"
        if catalogue is not None:
            if (difference := _difference(manifest, catalogue, find)) is not None:
                raise UserError(
                    f"{name} was converted with another catalogue ({source}) than {catalogue.source}, fingerprint "
                    f"{_short(catalogue.fingerprint)}: the same semantic ID would mean another item ({difference}); "
                    f"use {manifest.catalogue_file} (and only models that were trained with it), or {_fix(catalogue)}"
                )
            continue
        first_name, first = recorded[0]
        if not _one_contains_the_other(first, manifest, find):
            raise UserError(
                f"{name} was converted with another catalogue ({source}) than {first_name} ({first.catalogue_file}, "
                f"fingerprint {_short(first.catalogue)}): the same semantic ID would mean another item; use folders "
                "that were converted with the same catalogue"
            )


def _difference(manifest: Manifest, catalogue: Catalogue, find: Find) -> str | None:
    """How a folder's catalogue differs from one that has to contain it; None if that one does."""
    assert manifest.catalogue is not None
    if manifest.catalogue == catalogue.fingerprint:
        return None
    own = find(manifest.catalogue, manifest.folder, manifest.catalogue_file)
    return UNKNOWN_CONTENT if own is None else not_contained(own, catalogue)


def _one_contains_the_other(first: Manifest, second: Manifest, find: Find) -> bool:
    if first.catalogue == second.catalogue:
        return True
    catalogues = [find(str(m.catalogue), m.folder, m.catalogue_file) for m in (first, second)]
    small, large = sorted((c for c in catalogues if c is not None), key=len) if None not in catalogues else (None, None)
    return small is not None and large is not None and not_contained(small, large) is None


def _fix(catalogue: Catalogue) -> str:
    return f"convert the rows that were made with {catalogue.source} (ugt convert … --catalogue {catalogue.source})"


def _short(fingerprint: str | None) -> str:
    return str(fingerprint)[:SHORT]


def sample_items(manifest: Manifest, known: SemanticIdSet) -> ItemCounts:
    """Counts the items of up to MOST_ROWS rows, spread evenly over a folder.

    Shards that are not on this machine yet, or cannot be read, are left out: each is verified before training uses it.
    """
    folder, counts = Path(manifest.folder), ItemCounts()
    if not (folder / INDEX_NAME).exists():
        return counts
    shards = [shard for shard in read_index(folder) if (folder / shard.raw.name).exists()]
    most = MOST_SHARDS
    if not shards:
        shards = [shard for shard in read_index(folder) if (folder / shard.stored.name).exists()]
        most = MOST_ZIPPED_SHARDS
    step = math.ceil(max(len(shards), 1) / most)
    shards = shards[::step]
    rows = sum(shard.rows for shard in shards)
    for shard in shards:
        number = min(math.ceil(shard.rows * MOST_ROWS / max(rows, 1)), shard.rows)
        try:
            batch = batch_of([decode_row(row) for row in _read_rows(folder, shard, number)])
        except Exception:  # without its hash checked, corruption may cause any error
            continue
        counts.add(outside_items(batch, known)[0])
    return counts


def _read_rows(folder: Path, shard: ShardFacts, number: int) -> list[bytes]:
    data = None
    if not (folder / shard.raw.name).exists():
        data = decompress(shard.compression, (folder / shard.stored.name).read_bytes())
    return ShardRows(folder / shard.raw.name, data).rows(np.linspace(0, shard.rows - 1, number).astype(np.int64))
