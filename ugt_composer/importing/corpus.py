"""Reads, joins and splits interactions and items; rows, pairs and semantic IDs are made from the result."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from ugt_composer.errors import UserError
from ugt_composer.importing.actions import with_one_spelling
from ugt_composer.importing.histories import Marked, make_histories
from ugt_composer.importing.ids import listed
from ugt_composer.importing.inputs import shown
from ugt_composer.importing.interactions import Interactions
from ugt_composer.importing.items import Items, all_items, numbers_of
from ugt_composer.importing.log import Census, Log, census
from ugt_composer.importing.matching import form_hint, match_items
from ugt_composer.importing.order_statistics import nth_smallest, quantile_rank
from ugt_composer.importing.partitions import Partitions
from ugt_composer.importing.plausibility import about_values
from ugt_composer.importing.settings import SourceSettings, SplitSettings
from ugt_composer.importing.splits import PARTS, TIME, TRAIN, by_time, leave_one_out, user_offsets

Bounds = tuple[float, float]  # where validation and test begin in time


@dataclass(frozen=True)
class UserHistories:
    """N interactions of the U users of a partition; the P positive ones form the histories.

    Attributes:
        log: all interactions; items are numbered as in the catalogue.
        liked: bool (N,): what is positive by rating and action.
        positive: bool (N,): what is left of these after --repeats.
        user, item: int (P,) of the positive interactions.
        offsets: int64 (U + 1,): user u's positive interactions are offsets[u] to offsets[u + 1].
        part: int8 (P,) TRAIN, VALIDATION or TEST.
        held_out_user: bool (U,): users whose interactions are not used for training.
        bounds: of a split by time; None: each user's last interactions are held out.
    """

    log: Interactions
    liked: np.ndarray
    positive: np.ndarray
    user: np.ndarray
    item: np.ndarray
    offsets: np.ndarray
    part: np.ndarray
    held_out_user: np.ndarray
    bounds: Bounds | None

    @property
    def trained(self) -> np.ndarray:
        """bool (P,): the interactions that may be used for training."""
        return (self.part == TRAIN) & ~self.held_out_user[self.user]


@dataclass(frozen=True)
class SplitCounts:
    """Attributes:
    parts: int64 (3,) positive interactions of TRAIN, VALIDATION and TEST.
    trained: those that may be used for training.
    longest: number of positive interactions of the user who has the most.
    longest_trained: the same among users who are not held out; −1 if all are.
    times: of all interactions, the first and the last one; empty without times.
    """

    parts: np.ndarray
    trained: int
    longest: int
    longest_trained: int
    times: frozenset[float]

    def __add__(self, other: "SplitCounts") -> "SplitCounts":
        return SplitCounts(
            self.parts + other.parts,
            self.trained + other.trained,
            max(self.longest, other.longest),
            max(self.longest_trained, other.longest_trained),
            _ends(self.times | other.times),
        )


@dataclass(frozen=True)
class Corpus:
    """All interactions, split, and their items.

    Attributes:
        log: all interactions that are left.
        partitions: of these, with histories and split.
        items: the items of the catalogue.
        users, held_out_users: how many there are.
        counts: of the split.
        facts: values for the report.
        warnings: sentences about interactions and items, for the user and the report.
    """

    log: Log
    partitions: Partitions[UserHistories]
    items: Items
    users: int
    held_out_users: int
    counts: SplitCounts
    facts: dict[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def timed(self) -> bool:
        """The interactions have times."""
        return self.log.time_form is not None

    @property
    def one_time(self) -> bool:
        """They have no different times."""
        return len(self.counts.times) < 2


def with_checked_values(log: Log, source: SourceSettings) -> tuple[Log, Census]:
    """The log with one spelling of each action, and with warnings about values that are not plausible; its counts."""
    log, about_actions = with_one_spelling(log)
    about_actions = tuple(f"{shown(source.interactions)}: {text}" for text in about_actions)
    counts = census(log)
    implausible = about_values(source.interactions[0], log, counts)
    return replace(log, warnings=(*log.warnings, *implausible, *about_actions)), counts


def make_corpus(
    log: Log,
    counts: Census,
    known: Items | None,
    covered: pl.Series | None,
    source: SourceSettings,
    split: SplitSettings,
    drop_items_without: bool,
) -> Corpus:
    """Joins interactions with the catalogue's items and splits them.

    Args:
        counts: of the log.
        known: the table of items.
        covered: items that have an id or vector; None if all can get one. An interaction with any other item is an
            error, or is left out with `drop_items_without`.
    """
    facts: dict[str, Any] = {"interactions": counts.rows, "skipped_rows": log.skipped}
    facts["first_skipped"] = log.first_skipped
    if log.time_form is not None and counts.first_time is not None and counts.last_time is not None:
        facts["times"] = log.time_form.facts(counts.first_time, counts.last_time)
    matches = match_items(log.items, counts.item_rows, known, source.max_unmatched)
    warnings = (*(() if known is None else known.warnings), *log.warnings, *matches.warnings)
    if known is not None:
        facts["item_matches"] = matches.facts
    items = all_items(log.items, known, covered, source.only_seen_items)
    numbers = numbers_of(log.items, items).astype(np.int32)
    without = log.items.filter(pl.Series(numbers < 0))
    if len(without):
        warnings += (_about_items_without(without, log.items, covered, drop_items_without),)
    log = replace(log, items=items.ids, partitions=log.partitions.transform(_renumbered, numbers))
    facts["interactions_without_id"] = int(counts.item_rows[numbers < 0].sum())
    histories = make_histories(log, census(log) if len(without) else counts, source)
    marked, facts, warnings = histories.partitions, facts | histories.facts, warnings + histories.warnings
    if source.k_core is not None:
        marked, items = _without_rare_items(marked, items)
        log = replace(log, items=items.ids)
    bounds, about_bounds = _bounds(log, marked, split) if split.split == TIME else (None, {})
    users_of = marked.map(_count_users)
    users, held_out_of = sum(users_of), _held_out_users(users_of, split)
    partitions = marked.transform(_split, split, bounds, each=held_out_of).kept()
    split_counts = partitions.sum(_count_split)
    held_out = sum(int(mask.sum()) for mask in held_out_of)
    facts["positive"] = int(split_counts.parts.sum())
    facts |= about_bounds
    facts["users"], facts["held_out_users"] = users, held_out
    facts["parts"] = dict(zip(PARTS, split_counts.parts.tolist(), strict=True))
    log = replace(log, partitions=partitions.transform(_log_of))
    return Corpus(log, partitions, items, users, held_out, split_counts, facts, warnings)


def _log_of(partition: UserHistories) -> Interactions:
    return partition.log


def _about_items_without(without: pl.Series, ids: pl.Series, covered: pl.Series | None, drop: bool) -> str:
    """A warning about items that have no code or vector; UserError if they are not to be left out."""
    assert covered is not None
    hint = form_hint(without, covered, "the file of codes or vectors")
    lacking = (
        f"item {without[0]!r} of the interactions has no code or vector ({len(without):,} of {len(ids):,} "
        f"items have none: {listed(without.to_list())}); the file of codes or vectors has ids such as "
        f"{listed(covered.to_list())}{hint}"
    )
    if not drop:
        raise UserError(
            f"{lacking}; add the missing ones to that file, or leave these items out with --drop-items-without"
        )
    if len(without) == len(ids):
        raise UserError(f"{lacking}; without these items no interaction is left")
    return f"{lacking}; these items were left out"


def _renumbered(log: Interactions, numbers: np.ndarray) -> Interactions:
    """The interactions with other numbers of items, without those whose item has −1."""
    item = numbers[log.item]
    if (item < 0).any():
        log, item = log.only(item >= 0), item[item >= 0]
    return replace(log, item=item)


def _without_rare_items(marked: Partitions[Marked], items: Items) -> tuple[Partitions[Marked], Items]:
    """The interactions with only the users and items that they have, which get new numbers."""
    has_item = np.any(marked.map(_items_of, len(items)), axis=0)
    numbers = (np.cumsum(has_item) - 1).astype(np.int32)
    kept = np.flatnonzero(has_item)
    names, texts = (None if values is None else values.gather(kept) for values in (items.names, items.texts))
    return marked.transform(_renumbered_marked, numbers), replace(
        items, ids=items.ids.gather(kept), names=names, texts=texts
    )


def _items_of(marked: Marked, items: int) -> np.ndarray:
    return np.bincount(marked.log.item, minlength=items) > 0


def _renumbered_marked(marked: Marked, numbers: np.ndarray) -> Marked:
    log = marked.log
    users, user = np.unique(log.user, return_inverse=True)
    log = replace(log, users=log.users.gather(users), user=user.astype(np.int32), item=numbers[log.item])
    return replace(marked, log=log)


def _bounds(log: Log, marked: Partitions[Marked], split: SplitSettings) -> tuple[Bounds, dict[str, Any]]:
    """The times at which validation and test begin, and these as facts."""
    form = log.time_form
    if form is None:
        raise UserError("--split time: expected timestamps, but this file, or --file-order, gives only the order")

    def quantile(fraction: float) -> float:
        return float(nth_smallest(marked, _positive_times, lambda count: [quantile_rank(count, fraction)])[0])

    validation, test = (
        form.bound(text, quantile, option)
        for text, option in ((split.validation_from, "--validation-from"), (split.test_from, "--test-from"))
    )
    if validation >= test:
        raise UserError(
            f"--validation-from {split.validation_from} and --test-from {split.test_from}: the first must be earlier; "
            f"they are {form.shown(validation)} and {form.shown(test)}"
        )
    facts: dict[str, Any] = {"validation_from": validation, "test_from": test}
    facts["validation_from_date"], facts["test_from_date"] = form.shown(validation), form.shown(test)
    return (validation, test), facts


def _positive_times(marked: Marked) -> np.ndarray:
    assert marked.log.time is not None
    return marked.log.time[marked.positive]


def _count_users(marked: Marked) -> int:
    return len(marked.log.users)


def _held_out_users(users_of: list[int], split: SplitSettings) -> list[np.ndarray]:
    """bool (U,) of each partition: the users that --held-out-users draws."""
    held_out = np.zeros(sum(users_of), bool)
    count = round(split.held_out_users * len(held_out))
    held_out[np.random.default_rng(split.seed).permutation(len(held_out))[:count]] = True
    return np.split(held_out, np.cumsum(users_of)[:-1])


def _split(marked: Marked, held_out: np.ndarray, split: SplitSettings, bounds: Bounds | None) -> UserHistories:
    log, positive = marked.log, marked.positive
    user, item = (log.user, log.item) if positive.all() else (log.user[positive], log.item[positive])
    offsets = user_offsets(user, len(log.users))
    if bounds is None:
        part = leave_one_out(user, offsets, split.min_interactions)
    else:
        part = by_time(_positive_times(marked), *bounds)
    return UserHistories(log, marked.liked, positive, user, item, offsets, part, held_out, bounds)


def _count_split(partition: UserHistories) -> SplitCounts:
    lengths, time = np.diff(partition.offsets), partition.log.time
    return SplitCounts(
        parts=np.bincount(partition.part, minlength=len(PARTS)),
        trained=int(partition.trained.sum()),
        longest=int(lengths.max(initial=0)),
        longest_trained=int(lengths[~partition.held_out_user].max(initial=-1)),
        times=frozenset() if time is None or not len(time) else _ends([time.min().item(), time.max().item()]),
    )


def _ends(times: Collection[float]) -> frozenset[float]:
    return frozenset([min(times), max(times)]) if times else frozenset()
