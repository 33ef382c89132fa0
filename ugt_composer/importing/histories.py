"""Chooses the interactions that form histories: by rating and action, without duplicates, of a k-core."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ugt_composer.errors import UserError
from ugt_composer.importing.actions import counts_of_actions, in_histories, with_actions
from ugt_composer.importing.file_format import MIND
from ugt_composer.importing.inputs import shown
from ugt_composer.importing.interactions import Interactions
from ugt_composer.importing.k_core import k_core
from ugt_composer.importing.log import Census, Log
from ugt_composer.importing.mind import CLICK
from ugt_composer.importing.partitions import Partitions
from ugt_composer.importing.ratings import Ratings, ratings_of
from ugt_composer.importing.repeats import (
    KEEP,
    about_untimed_duplicates,
    exact_duplicates,
    kept_repeats,
    previous_occurrence,
)
from ugt_composer.importing.settings import SourceSettings

MOST_RATINGS = 5  # different ratings that a message lists


@dataclass(frozen=True)
class Marked:
    """N interactions of a partition, of which P form histories.

    Attributes:
        log: without duplicates and without what the k-core leaves out.
        liked: bool (N,): what is positive by rating and action.
        positive: bool (N,): what is left of these after --repeats.
    """

    log: Interactions
    liked: np.ndarray
    positive: np.ndarray


@dataclass(frozen=True)
class Histories:
    """All interactions, with those that form histories.

    Attributes:
        facts: values for the report.
        warnings: sentences for the user and the report.
    """

    partitions: Partitions[Marked]
    facts: dict[str, Any]
    warnings: tuple[str, ...]


def make_histories(log: Log, counts: Census, source: SourceSettings) -> Histories:
    """Raises UserError if nothing is left, or if the actions that form histories are not known."""
    place = shown(source.interactions)
    facts: dict[str, Any] = {}
    if "action" in log.columns:
        facts["actions"] = counts_of_actions(log)
    log, facts["duplicates"], about_duplicates = _without_duplicates(log, counts, source, place)
    log, ratings = _with_missing_ratings(log, source, place)
    facts["ratings"], about_ratings = _about_ratings(ratings, source, place)
    actions = (CLICK,) if source.positive_actions is None and source.format == MIND else source.positive_actions
    names, about_actions = in_histories(log, actions, place, source.preferences)
    warnings = (*about_duplicates, *about_ratings, *about_actions)
    marked: Partitions[Marked] = log.partitions.transform(_mark, names, source.min_rating)
    timed = not counts.one_time
    positive, again, users, at_once = marked.sum(_count_positive, timed).tolist()
    if not positive:
        raise UserError(f"{place}: no positive interaction is left; {_bounds(ratings, source)}")
    facts["repeats"] = {"interactions": again, "users": users, "kept": source.repeats}
    facts["repeats"] |= {"at_the_same_time": at_once} if timed else {}
    about_repeats = _about_repeats(at_once, source, place)
    if source.repeats != KEEP:
        marked = marked.transform(_keep_repeats, source.repeats)
    if source.k_core is not None:
        marked, facts["k_core"] = _core(marked, len(log.items), source.k_core, place)
    return Histories(marked, facts, (*warnings, *about_repeats))


def _mark(log: Interactions, names: list[str] | None, min_rating: float | None) -> Marked:
    positive = np.ones(len(log), bool) if names is None else with_actions(log, names)
    if min_rating is not None:
        assert log.rating is not None
        positive = positive & (log.rating >= min_rating)
    return Marked(log, positive, positive)


def _bounds(ratings: Ratings | None, source: SourceSettings) -> str:
    """What the options ask for, and what the file has."""
    texts = []
    if source.min_rating is not None and ratings is not None:
        known = ratings.values
        largest = f"the largest rating is {known.max():g}" if len(known) else "no row has a rating"
        texts.append(f"--min-rating is {source.min_rating:g}, {largest}")
    if source.positive_actions is not None:
        texts.append(f"see --positive-actions {' '.join(source.positive_actions)}")
    return "; ".join(texts)


def _without_duplicates(
    log: Log, counts: Census, source: SourceSettings, place: str
) -> tuple[Log, int, tuple[str, ...]]:
    unique = log.partitions if counts.one_time else log.partitions.transform(_without_exact_duplicates)
    count = 0 if counts.one_time else counts.rows - unique.sum(len)
    if not count:
        if counts.one_time and source.repeats == KEEP:
            warning = about_untimed_duplicates(log, counts)
            return log, 0, () if warning is None else (f"{place}: {warning}",)
        return log, 0, ()
    values = ["user", "item", "time", *(role for role in ("rating", "action") if role in log.columns)]
    same = f"{', '.join(values[:-1])} and {values[-1]}"
    found = f"{place}: {count:,} of {counts.rows:,} rows repeat an earlier row with the same {same}; they were"
    if source.keep_duplicates:
        return log, count, (f"{found} kept (--keep-duplicates)",)
    return replace(log, partitions=unique), count, (f"{found} left out; keep them with --keep-duplicates",)


def _without_exact_duplicates(log: Interactions) -> Interactions:
    duplicate = exact_duplicates(log)
    return log.only(~duplicate) if duplicate.any() else log


def _with_missing_ratings(log: Log, source: SourceSettings, place: str) -> tuple[Log, Ratings | None]:
    """Makes missing ratings NaN, and counts the others."""
    if "rating" not in log.columns:
        for option, value in (("--min-rating", source.min_rating), ("--missing-ratings", source.missing_ratings)):
            if value is not None:
                raise UserError(f"{option}: {place} has no column of ratings; name it with --rating-column")
        return log, None
    if source.missing_ratings is not None:
        log = replace(log, partitions=log.partitions.transform(_without_ratings, source.missing_ratings))
    return log, log.partitions.sum(_count_ratings)


def _without_ratings(log: Interactions, missing: Sequence[float]) -> Interactions:
    assert log.rating is not None
    is_missing = np.isin(log.rating, np.array(missing, np.float32))
    return replace(log, rating=np.where(is_missing, np.float32("nan"), log.rating))


def _count_ratings(log: Interactions) -> Ratings:
    assert log.rating is not None
    return ratings_of(log.rating)


def _about_ratings(
    ratings: Ratings | None, source: SourceSettings, place: str
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    if ratings is None:
        return None, ()
    facts: dict[str, Any] = {"missing": ratings.missing}
    values, counts = ratings.values, ratings.counts
    if not len(values):
        return facts, ()
    low = values <= 0
    facts |= {
        "lowest": round(float(values.min()), 4),
        "highest": round(float(values.max()), 4),
        "zero_or_less": int(counts[low].sum()),
    }
    if not low.any() or low.all():
        return facts, ()
    smallest = f"{values[~low].min():g}"
    known, values, counts = int(counts.sum()), values[low], counts[low]
    missing_values = " ".join(f"{value:g}" for value in values[:MOST_RATINGS])
    listed = ", ".join(f"{value:g}: {count:,}" for value, count in zip(values, counts, strict=True))
    if len(values) > MOST_RATINGS:
        listed = f"from {values[0]:g} to {values[-1]:g}"
    is_positive = source.min_rating is None or source.min_rating <= values[-1]
    use = "they enter histories, and preference rows reject them" if is_positive else "preference rows reject them"
    out = f"; keep them out of histories with --min-rating {smallest}" if is_positive else ""
    warning = (
        f"{place}: {counts.sum():,} of {known:,} ratings are 0 or less ({listed}), which often means «not rated»; "
        f"{use}. If they mean that, give --missing-ratings {missing_values}{out}"
    )
    return facts, (warning,)


def _about_repeats(at_once: int, source: SourceSettings, place: str) -> tuple[str, ...]:
    if not at_once or source.repeats != KEEP or source.keep_duplicates:
        return ()
    return (
        f"{place}: {at_once:,} times a user has an item again at the same time, with another rating or action; "
        "all are kept in the histories, --repeats last keeps only the last one",
    )


def _count_positive(marked: Marked, timed: bool) -> np.ndarray:
    """int64 (4,): positive interactions; those with an item that the user had before; their users; and those of them at
    the same time as before, 0 if not `timed`."""
    log, at = marked.log, np.flatnonzero(marked.positive)
    previous = previous_occurrence(log.user[at], log.item[at])
    again = np.flatnonzero(previous >= 0)
    at_once = 0
    if timed:
        assert log.time is not None
        at_once = int((log.time[at[again]] == log.time[at[previous[again]]]).sum())
    return np.array([len(at), len(again), len(np.unique(log.user[at[again]])), at_once])


def _keep_repeats(marked: Marked, which: str) -> Marked:
    log, at = marked.log, np.flatnonzero(marked.positive)
    positive = marked.positive.copy()
    positive[at[~kept_repeats(previous_occurrence(log.user[at], log.item[at]), which)]] = False
    return replace(marked, positive=positive)


def _core(marked: Partitions[Marked], items: int, k: int, place: str) -> tuple[Partitions[Marked], dict[str, int]]:
    """The interactions of the k-core's users and items, of which those in it are positive; and counts."""
    core = k_core(marked.transform(_positive_pairs), items, k)
    if not core.left:
        raise UserError(
            f"--k-core {k}: no interaction is left of the {core.first:,} positive ones of {place}; no set of users and "
            f"items has {k} or more interactions each; give a smaller number"
        )
    before = marked.map(_users_and_items, items)
    kept_items = core.item_counts > 0
    marked = marked.transform(_only_core, kept_items, k)
    users_before, items_before = sum(users for users, _ in before), np.any([items for _, items in before], axis=0)
    users = sum(users for users, _ in marked.map(_users_and_items, items))
    facts = {
        "k": k,
        "rounds": core.rounds,
        "users_removed": users_before - users,
        "items_removed": int(items_before.sum()) - int(kept_items.sum()),
        "interactions_removed": core.first - core.left,
    }
    return marked, facts


def _positive_pairs(marked: Marked) -> tuple[np.ndarray, np.ndarray]:
    return marked.log.user[marked.positive], marked.log.item[marked.positive]


def _users_and_items(marked: Marked, items: int) -> tuple[int, np.ndarray]:
    """How many users have an interaction, and bool (I,) which items."""
    return len(np.unique(marked.log.user)), np.bincount(marked.log.item, minlength=items) > 0


def _only_core(marked: Marked, kept_items: np.ndarray, k: int) -> Marked:
    """The interactions with items of the core of users of the core: those with k positive ones with such items."""
    log = marked.log
    positive = marked.positive & kept_items[log.item]
    kept_users = np.bincount(log.user[positive], minlength=len(log.users)) >= k
    left = kept_users[log.user] & kept_items[log.item]
    return Marked(log.only(left), marked.liked[left], positive[left])
