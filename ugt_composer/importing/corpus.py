"""Reads, joins and splits interactions and items; rows, pairs and semantic IDs are made from the result."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from ugt_composer.errors import UserError, nearest
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
        positive: bool (N,).
        user, item: int (P,) of the positive interactions.
        offsets: int64 (U + 1,): user u's positive interactions are offsets[u] to offsets[u + 1].
        part: int8 (P,) TRAIN, VALIDATION or TEST.
        held_out_user: bool (U,): users whose interactions are not used for training.
        facts: values for the report.
        warnings: sentences about interactions and items, for the user and the report.
    """

    log: Interactions
    items: Items
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
    return replace(log, warnings=(*log.warnings, *about_values(source.interactions[0], log)))


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
            f"items have none: {listed(without.to_list())}){hint}"
        )
        if not drop_items_without:
            raise UserError(f"{lacking}; give each one, or leave them out with --drop-items-without")
        warnings += (f"{lacking}; they were left out",)
        if len(without) == len(log.items):
            raise UserError(f"{lacking}; without these items no interaction is left")
        log, item = log.only(item >= 0), item[item >= 0]
    facts["interactions_without_id"] = facts["interactions"] - len(log)
    log = replace(log, items=items.ids, item=item)
    positive = _positive(log, source)
    facts["positive"] = int(positive.sum())
    all_positive = bool(positive.all())
    user, item = (log.user, log.item) if all_positive else (log.user[positive], log.item[positive])
    if not len(user):
        raise UserError(
            f"{shown(source.interactions)}: no positive interaction is left; see --min-rating and --positive-actions"
        )
    offsets = user_offsets(user, len(log.users))
    part = _parts(log, positive, user, offsets, split, facts)
    held_out = np.zeros(len(log.users), bool)
    count = round(split.held_out_users * len(held_out))
    held_out[np.random.default_rng(split.seed).permutation(len(held_out))[:count]] = True
    facts["users"], facts["held_out_users"] = len(log.users), count
    facts["parts"] = {name: int(n) for name, n in zip(PARTS, np.bincount(part, minlength=len(PARTS)), strict=True)}
    return Corpus(log, items, positive, user, item, offsets, part, held_out, facts, warnings)


def _positive(log: Interactions, source: SourceSettings) -> np.ndarray:
    positive = np.ones(len(log), bool)
    if source.min_rating is not None:
        if log.rating is None:
            raise UserError(f"--min-rating {source.min_rating}: {shown(source.interactions)} has no column of ratings")
        positive &= log.rating >= source.min_rating
    if source.positive_actions is not None:
        positive &= with_actions(log, source.positive_actions, "--positive-actions")
    return positive


def with_actions(log: Interactions, actions: tuple[str, ...], option: str) -> np.ndarray:
    """bool (N,): whether the action of an interaction is one of `actions`."""
    if log.action is None:
        raise UserError(f"{option}: no column of actions was found; name it with --action-column")
    known_actions = log.action.unique().drop_nulls().to_list()
    for action in actions:
        if action not in known_actions:
            raise UserError(f"{option} {action}: no interaction has this action; {nearest(action, known_actions)}")
    return log.action.is_in(list(actions)).fill_null(False).to_numpy()


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
