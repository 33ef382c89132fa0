"""Adds items to a catalogue whose ids exist already: no old id changes, and new items get theirs by the stored centres.

I items of the bundle, n added items, d dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.errors import UserError
from ugt_composer.importing.assign import Assigned, Given, read_given
from ugt_composer.importing.assigner import TEXTS, Assigner, View, read_assigner
from ugt_composer.importing.bundle import Bundle, catalogue_beside, is_bundle, parse_bundle
from ugt_composer.importing.codes import read_json
from ugt_composer.importing.items import Items, all_items, numbers_of
from ugt_composer.importing.levels import added_codes, capacities, compact_sizes
from ugt_composer.importing.quality import prefix_numbers
from ugt_composer.importing.settings import IdSettings
from ugt_composer.vocabulary import NUM_SPECIAL_IDS

NEARLY_FULL = 0.9


@dataclass(frozen=True)
class Base:
    """A bundle that is to be extended, and what that needs.

    Attributes:
        path: of the bundle, for messages.
        vectors: float32 (I, d), of its items.
        catalogue: the one beside it; None if there is none.
    """

    path: Path
    bundle: Bundle
    assigner: Assigner
    vectors: np.ndarray
    catalogue: Catalogue | None


@dataclass(frozen=True)
class Extended:
    """The ids of all items, old ones first; their names; and what was added, for the report."""

    assigned: Assigned
    items: Items
    facts: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def known_vectors(self) -> np.ndarray:
        """(I + n, d): the vectors of all items, 0 where that is the vector of a random item."""
        assert self.assigned.vectors is not None
        assert self.assigned.assigner is not None
        views = self.assigned.assigner.views.values()
        if not views:  # the vectors were given by a file
            return self.assigned.vectors
        return self.assigned.vectors * np.any([view.known for view in views], axis=0)[:, None]


def read_base(path: Path) -> Base:
    """Reads a bundle and the files beside it. Raises UserError if it cannot be extended, with the reason."""
    content = read_json(path)
    if not is_bundle(content):
        raise UserError(f"--extend {path}: expected a semantic_ids.json that this program or the importer wrote")
    bundle = parse_bundle(path, content)
    if bundle.assigner is None:
        reason = "it has no centres of the levels: it was written by an earlier version, or copied by --codes"
        advice = "extend the file that its ids were made in, or make ids of all items again (and train again)"
        if bundle.made.get("method") == "codes":
            reason = "its ids were read from a file of codes, so only what made those codes can assign more"
            advice = "make codes of all items there"
        raise UserError(f"--extend {path}: {reason}; {advice}")
    names = list(bundle.made.get("from", ()))
    made = read_assigner(path, bundle.assigner, names, len(bundle.items))
    return Base(path, bundle, *made, catalogue_beside(path, bundle))


def extend_ids(base: Base, known: Items | None, settings: IdSettings, say: Callable[[str], object]) -> Extended:
    """Gives ids to the items that a bundle lacks.

    Args:
        known: the table of items, with new items and possibly old ones.

    Raises:
        UserError: there is no new item, nothing says what it is like, or a codebook is full.
    """
    old = base.bundle
    given = read_given(settings, known)
    new = _new_items(base, known, given)
    say(f"semantic IDs of {len(new):,} new items")
    with threadpool_limits(1):
        new_vectors, unknown = _vectors(base, new, given, settings.seed)
        codes = base.assigner.quantiser.codes(new_vectors)
    ids, own = _ids(old, codes, settings)
    sizes = compact_sizes(ids, settings.codebook_sizes, settings.reserve if own.any() else 0.0)
    sizes = [max(pair) for pair in zip(old.codebook_sizes, sizes, strict=True)]
    extends = [*old.extends, {"fingerprint": old.fingerprint, "items": len(old.items)}]
    all_ids, all_items = np.concatenate([old.ids, ids]), pl.concat([old.items, new.ids.alias(old.items.name)])
    bundle = Bundle(all_items, all_ids, sizes, old.made, extends)
    vectors = np.concatenate([base.vectors, new_vectors.astype(np.float32)])
    views = {name: _grown(name, view, ~unknown) for name, view in base.assigner.views.items()}
    facts, warnings = _report(old, bundle, own, unknown)
    assigned = Assigned(bundle, {"item vectors": vectors}, vectors, replace(base.assigner, views=views))
    return Extended(assigned, Items(all_items, _names(base, known, new)), facts, warnings)


def _new_items(base: Base, known: Items | None, given: Given | None) -> Items:
    """The items that the bundle lacks, with names and texts, in the order of an import."""
    path, old, made_of_vectors = base.path, base.bundle, not base.assigner.views
    if given is not None and not made_of_vectors:
        raise UserError(f"--vectors: the ids in {path} were made from texts and interactions; give only --items")
    if given is None and made_of_vectors:
        raise UserError(f"--extend {path}: its ids were made from --vectors; give those of the new items too")
    if not made_of_vectors and base.assigner.texts is None:
        raise UserError(
            f"--extend {path}: its ids were made from interactions only, which new items have not; make ids of all "
            "items again with --items that have texts"
        )
    if known is None and given is None:
        raise UserError(f"--extend {path}: the new items are missing; give a table with their texts by --items")
    listed = given.items if given is not None else known.ids  # type: ignore[union-attr]
    added = listed.filter(~listed.is_in(old.items.implode()))
    if not len(added):
        raise UserError(f"--extend {path}: it has all {len(listed):,} items already; nothing is to be added")
    if known is not None and given is not None:
        lacking = known.ids.filter(~known.ids.is_in(pl.concat([listed, old.items]).implode()))
        if len(lacking):
            raise UserError(f"--vectors has no vector of {len(lacking):,} new items of --items, such as {lacking[0]!r}")
    new = all_items(added, known, added, only_seen=True)
    if not made_of_vectors and new.texts is None:
        raise UserError(
            f"--items: no column of texts was found, which the ids in {path} were made from; --text-columns"
        )
    return new


def _vectors(base: Base, new: Items, given: Given | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the new items, (n, d), and which of them nothing is known of, bool (n,)."""
    if given is None:
        assert new.texts is not None
        return base.assigner.vectors_of_texts(new.texts, base.vectors, seed)
    assert given.vectors is not None
    if given.vectors.shape[1] != base.vectors.shape[1]:
        raise UserError(
            f"--vectors has {given.vectors.shape[1]} dimensions, but the ids in {base.path} were made from "
            f"vectors of {base.vectors.shape[1]}; expected vectors of the same kind"
        )
    return given.vectors[numbers_of(new.ids, Items(given.items))], np.zeros(len(new), bool)


def _ids(old: Bundle, codes: np.ndarray, settings: IdSettings) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the new items, int64 (n, 3), and whether each has a third-level id of its own."""
    old_codes = old.ids - NUM_SPECIAL_IDS
    prefixes = prefix_numbers(np.concatenate([old_codes[:, :2], codes]))
    capacity = capacities(old.codebook_sizes)[2]
    largest = max(capacity, capacities(settings.codebook_sizes)[2])
    count = len(old.items)
    l3, own = added_codes(prefixes[count:], prefixes[:count], old_codes[:, 2], capacity, largest)
    return np.concatenate([codes, l3[:, None]], axis=1) + NUM_SPECIAL_IDS, own


def _grown(name: str, view: View, is_known: np.ndarray) -> View:
    """A view of the old and the new items; of these only texts are known."""
    return replace(view, known=np.concatenate([view.known, is_known & (name == TEXTS)]))


def _names(base: Base, known: Items | None, new: Items) -> pl.Series | None:
    """The names of all items: those of the table, for old items else those of the catalogue beside the bundle."""
    catalogue = base.catalogue
    names = {} if catalogue is None else {item.item_id: item.name for item in catalogue.items}
    if known is not None and known.names is not None:
        table = zip(known.ids.to_list(), known.names.to_list(), strict=True)
        names |= {item: name for item, name in table if name is not None}
    values = [names.get(item) for item in (*base.bundle.items.to_list(), *new.ids.to_list())]
    return pl.Series("name", values, dtype=pl.String) if any(value is not None for value in values) else None


def _report(
    old: Bundle, bundle: Bundle, own: np.ndarray, unknown: np.ndarray
) -> tuple[dict[str, Any], tuple[str, ...]]:
    room, was = bundle.codebook_sizes[2] - NUM_SPECIAL_IDS, old.codebook_sizes[2]
    largest = int(np.bincount(prefix_numbers(bundle.ids[:, :2])).max())
    facts = {
        "old_items": len(old.items),
        "new_items": len(own),
        "with_own_l3_id": int(own.sum()),
        "with_shared_l3_id": int((~own).sum()),
        "without_known_words": int(unknown.sum()),
        "largest_prefix": {"items": largest, "room": room},
        "l3_size": {"before": was, "now": bundle.codebook_sizes[2]},
        "unused_l3_ids": room - len(np.unique(bundle.ids[:, 2])),
    }
    warnings = []
    if unknown.any():
        warnings.append(
            f"{unknown.sum():,} new items have no word that an old item has; each gets the vector of a random item"
        )
    if bundle.codebook_sizes[2] > was:
        warnings.append(
            f"the third codebook grows from {was:,} to {bundle.codebook_sizes[2]:,} ids: a model that was trained with "
            "fewer needs `ugt extend`, which enlarges it; --reserve, when ids are made, avoids that"
        )
    if not own.all():
        warnings.append(
            f"{(~own).sum():,} new items share a third-level id with items of other prefixes, because all are used: "
            "they have no entry of their own in a model; give a larger third size to --codebook-sizes, or make ids "
            "of all items again (and train again)"
        )
    if largest > NEARLY_FULL * room:
        warnings.append(
            f"a prefix of two levels has {largest:,} items, and the third level has room for {room:,}; when it is "
            "full, --codebook-sizes needs a larger third size, or all items need new ids with more --clusters"
        )
    return facts, tuple(warnings)
