"""Whether a catalogue contains another one, with the same semantic IDs; and the copies of catalogues that models and
shards keep for that.

A fingerprint says whether two catalogues are the same, but not whether one contains the other.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import zstandard

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.errors import UserError
from ugt_composer.jsonl.bad_row import shown
from ugt_composer.jsonl.schema import ITEM_KEYS

EXAMPLES = 3  # items in a message


def catalogue_copy(catalogue: Catalogue) -> bytes:
    """Item ids and semantic IDs, without names, as JSON Lines sorted by item id, compressed by zstd."""
    keys, encoder, compressor = (
        ("item_id", *ITEM_KEYS),
        msgspec.json.Encoder(),
        zstandard.ZstdCompressor().compressobj(),
    )
    columns, parts = catalogue.columns, []
    for ids, triples in columns.chunks(columns.by_id):
        items = (dict(zip(keys, (item_id, *triple), strict=True)) for item_id, triple in zip(ids, triples, strict=True))
        parts.append(compressor.compress(encoder.encode_lines(items)))
    return b"".join([*parts, compressor.flush()])


def find_catalogue(fingerprint: str, places: Iterable[str | Path | None]) -> Catalogue | None:
    """The first of these files that is a catalogue with this fingerprint; None if none is."""
    for place in places:
        if place is None or not Path(place).is_file():
            continue
        try:
            catalogue = Catalogue.load(place, keep_arrays=False)
        except UserError:
            continue
        if catalogue.fingerprint == fingerprint:
            return catalogue
    return None


def not_contained(old: Catalogue, new: Catalogue) -> str | None:
    """Names the first items of `old` that `new` lacks, or gives other ids; None if it contains them all, unchanged."""
    examples, count = [], 0
    for ids, triples in old.columns.chunks():
        for item_id, triple in zip(ids, triples, strict=True):
            row = new.columns.row_of(item_id)
            now = None if row is None else new.triples[row].tolist()
            if now == triple:
                continue
            count += 1
            if count <= EXAMPLES:
                change = "is missing" if now is None else f"is {_ids(now)}"
                examples.append(f"{shown(item_id)} ({_ids(triple)}) {change}")
    if not count:
        return None
    return f"{count:,} of {len(old):,} items differ in {new.source}: {', '.join(examples)}{', …' * (count > EXAMPLES)}"


def _ids(triple: Sequence[int]) -> str:
    return "/".join(map(str, triple))
