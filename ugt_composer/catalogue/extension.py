"""Whether a catalogue contains another one, with the same semantic IDs; and the copies of catalogues that models and
shards keep for that.

A fingerprint says whether two catalogues are the same, but not whether one contains the other.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec
import zstandard

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.data.history import SemanticId
from ugt_composer.errors import UserError
from ugt_composer.jsonl.bad_row import shown
from ugt_composer.jsonl.schema import ITEM_KEYS

EXAMPLES = 3  # items in a message


def catalogue_copy(catalogue: Catalogue) -> bytes:
    """Item ids and semantic IDs, without names, as JSON Lines sorted by item id, compressed by zstd."""
    lines = (
        msgspec.json.encode({"item_id": item.item_id, **dict(zip(ITEM_KEYS, item.triple, strict=True))})
        for item in sorted(catalogue.items, key=lambda item: item.item_id)
    )
    return zstandard.ZstdCompressor().compress(b"\n".join(lines) + b"\n")


def find_catalogue(fingerprint: str, places: Iterable[str | Path | None]) -> Catalogue | None:
    """The first of these files that is a catalogue with this fingerprint; None if none is."""
    for place in places:
        if place is None or not Path(place).is_file():
            continue
        try:
            catalogue = Catalogue.load(place)
        except UserError:
            continue
        if catalogue.fingerprint == fingerprint:
            return catalogue
    return None


def not_contained(old: Catalogue, new: Catalogue) -> str | None:
    """Names the first items of `old` that `new` lacks, or gives other ids; None if it contains them all, unchanged."""
    examples, count = [], 0
    for item in old.items:
        now = new.triple_of(item.item_id) if item.item_id in new else None
        if now == item.triple:
            continue
        count += 1
        if count <= EXAMPLES:
            change = "is missing" if now is None else f"is {_ids(now)}"
            examples.append(f"{shown(item.item_id)} ({_ids(item.triple)}) {change}")
    if not count:
        return None
    return f"{count:,} of {len(old):,} items differ in {new.source}: {', '.join(examples)}{', …' * (count > EXAMPLES)}"


def _ids(triple: SemanticId) -> str:
    return "/".join(map(str, triple))
