"""Assigns semantic IDs to items: from codes if given, else from vectors, else from texts and interactions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.errors import UserError
from ugt_composer.importing.assigner import TEXTS, Assigner, View
from ugt_composer.importing.bundle import Bundle, catalogue_beside, is_bundle, parse_bundle
from ugt_composer.importing.clustering import Quantiser, check_clusters, default_clusters, fit_quantiser
from ugt_composer.importing.code_array import is_array_file, read_code_array
from ugt_composer.importing.codes import parse_codes, read_json
from ugt_composer.importing.ids import distinct_ids
from ugt_composer.importing.item_vectors import cooccurrence_vectors, joined_vectors
from ugt_composer.importing.items import Items, numbers_of
from ugt_composer.importing.kmeans import MOST_VECTORS
from ugt_composer.importing.levels import ROUNDING, capacities, compact_sizes, instance_codes, triples_of_codes
from ugt_composer.importing.pair_counts import PairCounts
from ugt_composer.importing.settings import IdSettings
from ugt_composer.importing.texts import TextModel, fit_texts
from ugt_composer.importing.vectors import read_vectors
from ugt_composer.vocabulary import NUM_SPECIAL_IDS

COOCCURRENCE = "co-occurrence"
RESERVE = "reserve"  # in `made`
MOST_UNLIKE = 0.5  # fraction of the texts that may give no vector without a warning


@dataclass(frozen=True)
class Given:
    """The ids, or the vectors to make them from, that were read from a file.

    Attributes:
        items: text (n,), the ids of the items that the file covers.
        ids: int64 (n, 3) semantic IDs; None if they are to be made from `vectors`.
        vectors: float32 (n, d), or None.
        made: how the ids are made; stored in the bundle.
        extends: of the bundle that was read, see `Bundle`.
        sizes: the codebook sizes of a bundle with room for more items; None: as large as the ids need.
        catalogue: the one beside a bundle that was read; None if there is none.
        warnings: sentences about the file, for the user and the report.
    """

    items: pl.Series
    ids: np.ndarray | None
    vectors: np.ndarray | None
    made: dict[str, Any]
    warnings: tuple[str, ...] = ()
    extends: Sequence[dict[str, Any]] = ()
    sizes: Sequence[int] | None = None
    catalogue: Catalogue | None = None


@dataclass(frozen=True)
class Assigned:
    """The semantic IDs of all I items, and the vectors that their quality is measured with.

    Attributes:
        views: name of the source, such as "texts" → vectors (I, d).
        vectors: float32 (I, d), those given or else all views joined; None if there are none.
        assigner: gives ids to items that are added later; None if the ids were given.
        warnings: sentences about the texts, for the user and the report.
    """

    bundle: Bundle
    views: dict[str, np.ndarray]
    vectors: np.ndarray | None
    assigner: Assigner | None = None
    warnings: tuple[str, ...] = ()


def read_given(settings: IdSettings, known: Items | None) -> Given | None:
    """Reads the file of codes or vectors that the settings name; None if the ids are to be built."""
    if settings.codes is not None:
        given, place = _read_codes(settings.codes, settings, known), settings.code_items or settings.codes
    elif settings.vectors is not None:
        items, vectors = read_vectors(settings.vectors, settings.vector_items, *_order(known))
        made = {"method": "vectors", "dimensions": vectors.shape[1]}
        given, place = Given(items, None, vectors, made), settings.vector_items or settings.vectors
    else:
        return None
    ids, warnings = distinct_ids(given.items, str(place), settings.missing_as_ids)
    return replace(given, items=ids, warnings=warnings)


def _order(known: Items | None) -> tuple[pl.Series | None, str]:
    """The ids of the table of items, and what messages call it."""
    if known is None or known.table is None:
        return None if known is None else known.ids, "the table of items"
    left_out = known.table.facts["rows"] - len(known)
    without = f" without {left_out:,} of its rows, which were left out," if left_out else ""
    return known.ids, f"{known.table.path}{without}"


def _read_codes(path: Path, settings: IdSettings, known: Items | None) -> Given:
    """Item ids are as written in the file."""
    if is_array_file(path):
        items, codes = read_code_array(path, settings.code_items, *_order(known))
    else:
        content = read_json(path)
        if is_bundle(content):
            bundle = parse_bundle(path, content)
            _check_sizes(bundle, settings)
            sizes = bundle.codebook_sizes if bundle.extends or RESERVE in bundle.made else None
            return Given(
                bundle.items, bundle.ids, None, bundle.made, (), bundle.extends, sizes, catalogue_beside(path, bundle)
            )
        items, codes = parse_codes(path, content)
    made = {"method": "codes", "levels_given": sorted({len(code) for code in codes})}
    return Given(items, triples_of_codes(codes, settings.codebook_sizes), None, made)


def assign_ids(items: Items, given: Given | None, pairs: PairCounts | None, settings: IdSettings) -> Assigned:
    """Assigns semantic IDs to all items.

    Args:
        pairs: of training interactions; no others are used. None if there are none.
    """
    # Rounding errors depend on the number of threads. `exact.py` removes them; with one thread there are fewer of them.
    with threadpool_limits(1):
        views: dict[str, np.ndarray] = {}
        text_model: TextModel | None = None
        if items.texts is not None and items.texts.drop_nulls().len():
            text_model, views[TEXTS] = fit_texts(items.texts, settings.dimensions, settings.seed)
        if pairs is not None:
            views[COOCCURRENCE] = cooccurrence_vectors(pairs, settings.dimensions, settings.seed)
        if given is not None:
            rows = numbers_of(items.ids, Items(given.items))
            if given.vectors is not None:
                views = {"vectors": given.vectors[rows], **views}
            if given.ids is not None:
                ids = given.ids[rows]
                sizes = compact_sizes(ids, settings.codebook_sizes, settings.reserve)
                sizes = [max(pair) for pair in zip(sizes, given.sizes or sizes, strict=True)]
                bundle = Bundle(items.ids, ids, sizes, given.made, given.extends)
                return Assigned(bundle, views, _build_vectors(views, settings)[0] if views else None)
            vectors, made = views["vectors"], given.made
        else:
            vectors, made = _build_vectors(views, settings)
        joined = {} if given is not None else _joined_views(views, settings)
        quantiser, bundle = _make_bundle(items, vectors, made, settings)
    warnings = about_unlike_texts(items, views[TEXTS]) if TEXTS in joined else ()
    if given is None and sum(view.dimensions for view in joined.values()) != vectors.shape[1]:
        # Nothing is known of any item: its vectors are random numbers.
        return Assigned(bundle, views, vectors, warnings=warnings)
    assigner = Assigner(quantiser, joined, text_model if TEXTS in joined else None)
    return Assigned(bundle, views, vectors, assigner, warnings)


def about_unlike_texts(items: Items, vectors: np.ndarray) -> tuple[str, ...]:
    """A warning if most of the items with a text have no vector (I, d) of it."""
    assert items.texts is not None
    texts = (items.texts.fill_null("") != "").to_numpy()
    unlike = int((texts & ~(vectors != 0).any(axis=1)).sum())
    if unlike <= MOST_UNLIKE * texts.sum():
        return ()
    return (
        f"the texts of {unlike:,} of {texts.sum():,} items share no word, or only rare ones, with the texts of other "
        "items, so they do not influence the semantic IDs; name other columns with --text-columns, or give vectors "
        "of a language model with --vectors",
    )


def _make_bundle(
    items: Items, vectors: np.ndarray, made: dict[str, Any], settings: IdSettings
) -> tuple[Quantiser, Bundle]:
    *_, at_l2, at_l3 = capacities(settings.codebook_sizes)
    at_l3 = int(at_l3 / (1 + settings.reserve) + ROUNDING)  # the other ids are for new items
    clusters = settings.clusters or default_clusters(len(items), settings.codebook_sizes)
    sizes = (*settings.codebook_sizes[:2], at_l3 + NUM_SPECIAL_IDS)
    check_clusters(clusters, len(items), sizes, is_default=settings.clusters is None)
    quantiser, codes = fit_quantiser(vectors, clusters, settings.seed)
    l3 = instance_codes(codes[:, 0] * at_l2 + codes[:, 1], at_l3)
    ids = np.concatenate([codes, l3[:, None]], axis=1) + NUM_SPECIAL_IDS
    made = {**made, "clusters": list(clusters), "seed": settings.seed}
    if len(items) > MOST_VECTORS:
        made["fitted_on"] = MOST_VECTORS
    if settings.reserve:
        made[RESERVE] = settings.reserve
    return quantiser, Bundle(items.ids, ids, compact_sizes(ids, settings.codebook_sizes, settings.reserve), made)


def _build_vectors(views: dict[str, np.ndarray], settings: IdSettings) -> tuple[np.ndarray, dict[str, Any]]:
    if not views:
        raise UserError("no source for semantic IDs; expected --codes, --vectors, --items with texts, or interactions")
    weights = _weights(settings)
    vectors = joined_vectors(list(views.values()), [weights[name] for name in views], settings.seed)
    made = {"method": "built", "from": list(views), "dimensions": settings.dimensions, "window": settings.window}
    return vectors, {**made, "text_weight": settings.text_weight} if len(views) > 1 else made


def _weights(settings: IdSettings) -> dict[str, float]:
    return {TEXTS: settings.text_weight, COOCCURRENCE: 1 - settings.text_weight}


def _joined_views(views: dict[str, np.ndarray], settings: IdSettings) -> dict[str, View]:
    weights = _weights(settings)
    return {name: View(vectors.shape[1], weights[name], (vectors != 0).any(axis=1)) for name, vectors in views.items()}


def _check_sizes(bundle: Bundle, settings: IdSettings) -> None:
    needed, sizes = bundle.ids.max(axis=0) + 1, settings.codebook_sizes
    if (needed > np.array(sizes)).any():
        given_sizes, needed_sizes = (" ".join(map(str, numbers)) for numbers in (sizes, needed.tolist()))
        raise UserError(f"--codebook-sizes {given_sizes}: the ids in {settings.codes} need at least {needed_sizes}")
