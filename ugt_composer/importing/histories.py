"""Chooses the interactions that form histories: by rating and action, without duplicates, of a k-core."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ugt_composer.errors import UserError
from ugt_composer.importing.actions import counts_of_actions, in_histories
from ugt_composer.importing.file_format import MIND
from ugt_composer.importing.inputs import shown
from ugt_composer.importing.interactions import Interactions
from ugt_composer.importing.k_core import k_core
from ugt_composer.importing.mind import CLICK
from ugt_composer.importing.repeats import (
    KEEP,
    about_untimed_duplicates,
    exact_duplicates,
    kept_repeats,
    previous_occurrence,
)
from ugt_composer.importing.settings import SourceSettings
from ugt_composer.importing.splits import user_offsets

MOST_RATINGS = 5  # different ratings that a message lists


@dataclass(frozen=True)
class Histories:
    """N interactions, of which P form histories.

    Attributes:
        log: the interactions without duplicates and without what the k-core leaves out; numbers are unchanged.
        liked: bool (N,): what is positive by rating and action.
        positive: bool (N,): what is left of these after --repeats.
        facts: values for the report.
        warnings: sentences for the user and the report.
    """

    log: Interactions
    liked: np.ndarray
    positive: np.ndarray
    facts: dict[str, Any]
    warnings: tuple[str, ...]


def make_histories(log: Interactions, source: SourceSettings) -> Histories:
    """Raises UserError if nothing is left, or if the actions that form histories are not known."""
    place = shown(source.interactions)
    facts: dict[str, Any] = {}
    if log.action is not None:
        facts["actions"] = counts_of_actions(log)
    log, facts["duplicates"], about_duplicates = _without_duplicates(log, source, place)
    log, facts["ratings"], about_ratings = _ratings(log, source, place)
    actions = (CLICK,) if source.positive_actions is None and source.format == MIND else source.positive_actions
    positive, about_actions = in_histories(log, actions, place, source.preferences)
    warnings = (*about_duplicates, *about_ratings, *about_actions)
    positive = np.ones(len(log), bool) if positive is None else positive
    if source.min_rating is not None:
        assert log.rating is not None
        positive &= log.rating >= source.min_rating
    if not positive.any():
        raise UserError(f"{place}: no positive interaction is left; {_bounds(log, source)}")
    liked = positive
    positive, facts["repeats"], about_repeats = _repeats(log, liked, source, place)
    if source.k_core is not None:
        left, positive, facts["k_core"] = _core(log, positive, source.k_core, place)
        log, liked = log.only(left), liked[left]
    return Histories(log, liked, positive, facts, (*warnings, *about_repeats))


def _bounds(log: Interactions, source: SourceSettings) -> str:
    """What the options ask for, and what the file has."""
    texts = []
    if source.min_rating is not None and log.rating is not None:
        known = log.rating[~np.isnan(log.rating)]
        largest = f"the largest rating is {known.max():g}" if len(known) else "no row has a rating"
        texts.append(f"--min-rating is {source.min_rating:g}, {largest}")
    if source.positive_actions is not None:
        texts.append(f"see --positive-actions {' '.join(source.positive_actions)}")
    return "; ".join(texts)


def _without_duplicates(
    log: Interactions, source: SourceSettings, place: str
) -> tuple[Interactions, int, tuple[str, ...]]:
    duplicate = exact_duplicates(log)
    count = int(duplicate.sum())
    if not count:
        if log.time is None or log.time.min() == log.time.max():
            warning = about_untimed_duplicates(log, user_offsets(log.user, len(log.users)))
            return log, 0, () if warning is None or source.repeats != KEEP else (f"{place}: {warning}",)
        return log, 0, ()
    values = ["user", "item", "time", *(role for role in ("rating", "action") if role in log.columns)]
    same = f"{', '.join(values[:-1])} and {values[-1]}"
    found = f"{place}: {count:,} of {len(log):,} rows repeat an earlier row with the same {same}; they were"
    if source.keep_duplicates:
        return log, count, (f"{found} kept (--keep-duplicates)",)
    return log.only(~duplicate), count, (f"{found} left out; keep them with --keep-duplicates",)


def _ratings(
    log: Interactions, source: SourceSettings, place: str
) -> tuple[Interactions, dict[str, Any] | None, tuple[str, ...]]:
    """Makes missing ratings NaN, and describes the others."""
    if log.rating is None:
        for option, value in (("--min-rating", source.min_rating), ("--missing-ratings", source.missing_ratings)):
            if value is not None:
                raise UserError(f"{option}: {place} has no column of ratings; name it with --rating-column")
        return log, None, ()
    if source.missing_ratings is not None:
        missing = np.isin(log.rating, np.array(source.missing_ratings, np.float32))
        log = replace(log, rating=np.where(missing, np.float32("nan"), log.rating))
    assert log.rating is not None
    rating = log.rating[~np.isnan(log.rating)]
    facts: dict[str, Any] = {"missing": len(log) - len(rating)}
    if not len(rating):
        return log, facts, ()
    low = rating[rating <= 0]
    facts |= {
        "lowest": round(float(rating.min()), 4),
        "highest": round(float(rating.max()), 4),
        "zero_or_less": len(low),
    }
    if not len(low) or len(low) == len(rating):
        return log, facts, ()
    values, counts = np.unique(low, return_counts=True)
    missing_values = " ".join(f"{value:g}" for value in values[:MOST_RATINGS])
    listed = ", ".join(f"{value:g}: {count:,}" for value, count in zip(values, counts, strict=True))
    if len(values) > MOST_RATINGS:
        listed = f"from {values[0]:g} to {values[-1]:g}"
    smallest = f"{rating[rating > 0].min():g}"
    is_positive = source.min_rating is None or source.min_rating <= values[-1]
    use = "they enter histories, and preference rows reject them" if is_positive else "preference rows reject them"
    out = f"; keep them out of histories with --min-rating {smallest}" if is_positive else ""
    warning = (
        f"{place}: {len(low):,} of {len(rating):,} ratings are 0 or less ({listed}), which often means «not rated»; "
        f"{use}. If they mean that, give --missing-ratings {missing_values}{out}"
    )
    return log, facts, (warning,)


def _repeats(
    log: Interactions, positive: np.ndarray, source: SourceSettings, place: str
) -> tuple[np.ndarray, dict[str, Any], tuple[str, ...]]:
    """The positive interactions that --repeats keeps; counts; warnings about several ones at the same time."""
    at = np.flatnonzero(positive)
    previous = previous_occurrence(log.user[at], log.item[at])
    again = np.flatnonzero(previous >= 0)
    facts = {"interactions": len(again), "users": len(np.unique(log.user[at[again]])), "kept": source.repeats}
    warnings: tuple[str, ...] = ()
    if log.time is not None and log.time.min() < log.time.max():
        at_once = int((log.time[at[again]] == log.time[at[previous[again]]]).sum())
        facts["at_the_same_time"] = at_once
        if at_once and source.repeats == KEEP and not source.keep_duplicates:
            warnings = (
                f"{place}: {at_once:,} times a user has an item again at the same time, with another rating or action; "
                "all are kept in the histories, --repeats last keeps only the last one",
            )
    positive = positive.copy()
    positive[at[~kept_repeats(previous, source.repeats)]] = False
    return positive, facts, warnings


def _core(log: Interactions, positive: np.ndarray, k: int, place: str) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """bool (N,) the interactions of the k-core's users and items; which of these are positive; and counts."""
    at = np.flatnonzero(positive)
    kept, rounds = k_core(log.user[at], log.item[at], k)
    if not kept.any():
        raise UserError(
            f"--k-core {k}: no interaction is left of the {len(at):,} positive ones of {place}; no set of users and "
            f"items has {k} or more interactions each; give a smaller number"
        )
    users, items = np.unique(log.user[at[kept]]), np.unique(log.item[at[kept]])
    facts = {
        "k": k,
        "rounds": rounds,
        "users_removed": len(np.unique(log.user)) - len(users),
        "items_removed": len(np.unique(log.item)) - len(items),
        "interactions_removed": int((~kept).sum()),
    }
    positive = np.zeros(len(log), bool)
    positive[at[kept]] = True
    left = _mask(users, len(log.users))[log.user] & _mask(items, len(log.items))[log.item]
    return left, positive[left], facts


def _mask(numbers: np.ndarray, count: int) -> np.ndarray:
    """bool (count,): whether a number is one of `numbers`."""
    mask = np.zeros(count, bool)
    mask[numbers] = True
    return mask
