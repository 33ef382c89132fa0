"""The versioned file of semantic IDs: the ids of each item, how they were made, and the catalogue's fingerprint."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from ugt_composer.catalogue.catalogue import Catalogue, Item
from ugt_composer.errors import UserError
from ugt_composer.jsonl.schema import ITEM_KEYS
from ugt_composer.vocabulary import LEVELS, NUM_SPECIAL_IDS

FORMAT, VERSION = "ugt semantic ids", 1
CATALOGUE = "catalogue.jsonl"


@dataclass(frozen=True)
class Bundle:
    """Semantic IDs of n items.

    Attributes:
        items: item ids, text (n,).
        ids: int64 (n, 3).
        codebook_sizes: one per level; every id is below the size of its level.
        made: how the ids were made, as plain JSON values.
        extends: fingerprint and number of items of each catalogue that was extended to this one, the first one first.
        assigner: files and hashes of what gives ids to new items, see `Assigner.save`; None if there are none.
    """

    items: pl.Series
    ids: np.ndarray
    codebook_sizes: Sequence[int]
    made: dict[str, Any]
    extends: Sequence[dict[str, Any]] = ()
    assigner: dict[str, str] | None = None

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of a catalogue with these ids; checkpoints store it."""
        triples = zip(self.items.to_list(), *self.ids.T.tolist(), strict=True)
        return Catalogue([Item(*item) for item in triples]).fingerprint

    @cached_property
    def members(self) -> np.ndarray | None:
        """int64 (n,): each item's number, from 0, among those that share its ids, in the order of their item ids. None
        if no two items share their ids."""
        order = np.lexsort((np.argsort(np.argsort(self.items.to_numpy().astype(str))), *self.ids.T[::-1]))
        ordered = self.ids[order]
        starts = np.flatnonzero(np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)]))
        if len(starts) == len(order):
            return None
        sizes = np.diff(starts, append=len(order))
        members = np.empty(len(order), np.int64)
        members[order] = np.arange(len(order)) - np.repeat(starts, sizes)
        return members

    def save(self, path: Path) -> None:
        """Writes JSON with one item per line, so that versions can be compared line by line."""
        head: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "codebook_sizes": list(self.codebook_sizes),
            "made": self.made,
        }
        if self.extends:
            head["extends"] = list(self.extends)
        if self.assigner is not None:
            head["assigner"] = self.assigner
        lines = [f"{_json(key)}: {_json(value)}," for key, value in head.items()]
        pairs = zip(self.items.to_list(), self.ids.tolist(), strict=True)
        items = ",\n".join(f"{_json(item)}: {_json(triple)}" for item, triple in pairs)
        path.write_text("{\n" + "\n".join(lines) + '\n"items": {\n' + items + "\n}\n}\n", encoding="utf-8")

    def write_catalogue(self, path: Path, names: pl.Series | None, retired: Collection[str] = ()) -> None:
        """Writes JSON Lines for `data.catalogue`; `names` is text (n,), null where an item has no name, and `retired`
        are the item ids that are marked so."""
        columns = {"item_id": self.items, **{key: self.ids[:, level] for level, key in enumerate(ITEM_KEYS)}}
        if names is not None:
            columns["name"] = names
        if retired:
            columns["retired"] = self.items.is_in(list(retired))
        with path.open("wb") as file:
            pl.DataFrame(columns).write_ndjson(file)


def catalogue_beside(path: Path, bundle: Bundle) -> Catalogue | None:
    """The catalogue that lies beside a bundle's file, if it has the same items with the same ids; else None."""
    if not path.with_name(CATALOGUE).is_file():
        return None
    catalogue = Catalogue.load(path.with_name(CATALOGUE))
    return catalogue if catalogue.fingerprint == bundle.fingerprint else None


def retired_items(catalogue: Catalogue | None) -> frozenset[str]:
    """The item ids that a catalogue marks as retired."""
    return frozenset() if catalogue is None else frozenset(item.item_id for item in catalogue.items if item.retired)


def is_bundle(given: Any) -> bool:
    return isinstance(given, dict) and given.get("format") == FORMAT


def parse_bundle(path: Path, given: dict[str, Any]) -> Bundle:
    """Parses a bundle that `save` wrote.

    Raises:
        UserError: another version, invalid ids, or ids that do not match the fingerprint.
    """
    if given.get("version") != VERSION:
        raise UserError(f"{path}: found version {given.get('version')!r}, expected {VERSION}; make the ids again")
    items = given.get("items")
    sizes: list[int] = given.get("codebook_sizes", [])
    if not _are_sizes(sizes) or not isinstance(items, dict) or not items:
        raise UserError(f"{path}: expected {LEVELS} codebook_sizes, and items")
    for item, triple in items.items():
        if not _is_triple(triple, sizes):
            raise UserError(
                f"{path}: item {item!r}: found {triple}, expected {LEVELS} ids, each {NUM_SPECIAL_IDS} to "
                "codebook size - 1"
            )
    ids = np.array(list(items.values()), np.int64)
    names = pl.Series("item", list(items), dtype=pl.String)
    bundle = Bundle(names, ids, sizes, given.get("made", {}), given.get("extends", ()), given.get("assigner"))
    if bundle.fingerprint != given.get("fingerprint"):
        raise UserError(
            f"{path}: the ids do not match the fingerprint; the file was changed or is corrupted, make it again"
        )
    return bundle


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) == LEVELS and all(type(size) is int for size in value)


def _is_triple(value: Any, sizes: list[int]) -> bool:
    if not isinstance(value, list) or len(value) != LEVELS:
        return False
    return all(type(id_) is int and NUM_SPECIAL_IDS <= id_ < size for id_, size in zip(value, sizes, strict=True))


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
