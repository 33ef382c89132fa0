"""Reads, joins and splits interactions and items; rows, pairs and semantic IDs are made from the result."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from ugt_composer.errors import UserError
from ugt_composer.importing.actions import with_one_spelling
from ugt_composer.importing.histories import make_histories
from ugt_composer.importing.ids import listed
from ugt_composer.importing.inputs import shown
from ugt_composer.importing.interactions import Interactions, read_interactions
from ugt_composer.importing.items import Items, all_items, numbers_of
from ugt_composer.importing.matching import form_hint, match_items
from ugt_composer.importing.plausibility import about_values
from ugt_composer.importing.settings import SourceSettings, SplitSettings
from ugt_composer.importing.splits import PARTS, TIME, TRAIN, by_time, leave_one_out, user_offsets


@dataclass(frozen=True)
class Corpus:
    """N interactions of U users; the P positive ones form the histories.

    Attributes:
        log: all interactions; items are numbered as in `items`.
        items: the items of the catalogue.
        liked: bool (N,): what is positive by rating and action.
        positive: bool (N,): what is left of these after --repeats.
        user, item: int (P,) of the positive interactions.
        offsets: int64 (U + 1,): user u's positive interactions are offsets[u] to offsets[u + 1].
        part: int8 (P,) TRAIN, VALIDATION or TEST.
        held_out_user: bool (U,): users whose interactions are not used for training.
        facts: values for the report.
        warnings: sentences about interactions and items, for the user and the report.
    """

    log: Interactions
    items: Items
    liked: np.ndarray
    positive: np.ndarray
    user: np.ndarray
    item: np.ndarray
    offsets: np.ndarray
    part: np.ndarray
    held_out_user: np.ndarray
    facts: dict[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def trained(self) -> np.ndarray:
        """bool (P,): the interactions that may be used for training."""
        return (self.part == TRAIN) & ~self.held_out_user[self.user]


def read_log(source: SourceSettings) -> Interactions:
    log = read_interactions(
        source.interactions,
        source.columns,
        source.written,
        source.file_order,
        source.skip_bad,
        source.missing_as_ids,
        source.time_format,
    )
    log, about_actions = with_one_spelling(log)
    about_actions = tuple(f"{shown(source.interactions)}: {text}" for text in about_actions)
    return replace(log, warnings=(*log.warnings, *about_values(source.interactions[0], log), *about_actions))


def make_corpus(
    log: Interactions,
    known: Items | None,
    covered: pl.Series | None,
    source: SourceSettings,
    split: SplitSettings,
    drop_items_without: bool,
) -> Corpus:
    """Joins interactions with the catalogue's items and splits them.

    Args:
        known: the table of items.
        covered: items that have an id or vector; None if all can get one. An interaction with any other item is an
            error, or is left out with `drop_items_without`.
    """
    facts: dict[str, Any] = {"interactions": len(log), "skipped_rows": log.skipped, "first_skipped": log.first_skipped}
    if log.time is not None and log.time_form is not None:
        facts["times"] = log.time_form.facts(log.time)
    matches = match_items(log, known, source.max_unmatched)
    warnings = (*(() if known is None else known.warnings), *log.warnings, *matches.warnings)
    if known is not None:
        facts["item_matches"] = matches.facts
    items = all_items(log.items, known, covered, source.only_seen_items)
    numbers = numbers_of(log.items, items)
    item = numbers[log.item].astype(np.int32)
    if (numbers < 0).any():
        without = log.items.filter(pl.Series(numbers < 0))
        assert covered is not None
        hint = form_hint(without, covered, "the file of codes or vectors")
        lacking = (
            f"item {without[0]!r} of the interactions has no code or vector ({len(without):,} of {len(log.items):,} "
            f"items have none: {listed(without.to_list())}); the file of codes or vectors has ids such as "
            f"{listed(covered.to_list())}{hint}"
        )
        if not drop_items_without:
            raise UserError(
                f"{lacking}; add the missing ones to that file, or leave these items out with --drop-items-without"
            )
        warnings += (f"{lacking}; these items were left out",)
        if len(without) == len(log.items):
            raise UserError(f"{lacking}; without these items no interaction is left")
        log, item = log.only(item >= 0), item[item >= 0]
    facts["interactions_without_id"] = facts["interactions"] - len(log)
    log = replace(log, items=items.ids, item=item)
    histories = make_histories(log, source)
    log, positive, facts = histories.log, histories.positive, facts | histories.facts
    warnings += histories.warnings
    if source.k_core is not None:
        log, items = _renumbered(log, items)
    facts["positive"] = int(positive.sum())
    all_positive = bool(positive.all())
    user, item = (log.user, log.item) if all_positive else (log.user[positive], log.item[positive])
    offsets = user_offsets(user, len(log.users))
    part = _parts(log, positive, user, offsets, split, facts)
    held_out = np.zeros(len(log.users), bool)
    count = round(split.held_out_users * len(held_out))
    held_out[np.random.default_rng(split.seed).permutation(len(held_out))[:count]] = True
    facts["users"], facts["held_out_users"] = len(log.users), count
    facts["parts"] = {name: int(n) for name, n in zip(PARTS, np.bincount(part, minlength=len(PARTS)), strict=True)}
    return Corpus(log, items, histories.liked, positive, user, item, offsets, part, held_out, facts, warnings)


def _renumbered(log: Interactions, items: Items) -> tuple[Interactions, Items]:
    """The interactions with only the users and items that they have, which get new numbers."""
    users, user = np.unique(log.user, return_inverse=True)
    kept, item = np.unique(log.item, return_inverse=True)
    names, texts = (None if values is None else values.gather(kept) for values in (items.names, items.texts))
    items = replace(items, ids=items.ids.gather(kept), names=names, texts=texts)
    users_left = log.users.gather(users)
    log = replace(log, users=users_left, items=items.ids, user=user.astype(np.int32), item=item.astype(np.int32))
    return log, items


def _parts(
    log: Interactions,
    positive: np.ndarray,
    user: np.ndarray,
    offsets: np.ndarray,
    split: SplitSettings,
    facts: dict[str, Any],
) -> np.ndarray:
    if split.split != TIME:
        return leave_one_out(user, offsets, split.min_interactions)
    if log.time is None or log.time_form is None:
        raise UserError("--split time: expected timestamps, but this file, or --file-order, gives only the order")
    time = log.time[positive]
    bounds = [
        log.time_form.bound(text, time, option)
        for text, option in ((split.validation_from, "--validation-from"), (split.test_from, "--test-from"))
    ]
    if bounds[0] >= bounds[1]:
        raise UserError(
            f"--validation-from {split.validation_from} and --test-from {split.test_from}: the first must be earlier; "
            f"they are {log.time_form.shown(bounds[0])} and {log.time_form.shown(bounds[1])}"
        )
    facts["validation_from"], facts["test_from"] = bounds
    facts["validation_from_date"], facts["test_from_date"] = map(log.time_form.shown, bounds)
    return by_time(time, *bounds)
