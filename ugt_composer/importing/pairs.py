"""Preference pairs: an item that a user chose, and items that the same user rejected close in time.

Arrays hold N interactions of U users, grouped by user, oldest first. A pair has at most K rejected items.
"""

from dataclasses import dataclass

import numpy as np

from ugt_composer.importing.draws import Draws, draw_places
from ugt_composer.importing.splits import TEST, TRAIN, VALIDATION, user_offsets

BLOCK = 1 << 19  # pairs made at a time, to bound the memory
NEVER = np.iinfo(np.int16).max
REPEATS = 2  # rejected interactions examined on each side in addition to K, since an item may be rejected twice


@dataclass(frozen=True)
class Log:
    """All interactions, whether they are part of the histories or not.

    Attributes:
        user: int (N,), ascending.
        meaning: int (N,): equal for items that share a semantic id, which no preference can distinguish.
        part: (N,) TRAIN, VALIDATION or TEST.
        positive: bool (N,): whether the interaction is part of the histories.
        chosen: int16 (N,): how much the user preferred the item, from 0; −1 if it is never chosen.
        rejected: int16 (N,): the smallest value of `chosen` that is preferred to the item; NEVER if none is.
    """

    user: np.ndarray
    meaning: np.ndarray
    part: np.ndarray
    positive: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray


def two_levels(chosen: np.ndarray, rejected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`Log.chosen` and `Log.rejected` where every chosen item is preferred to every rejected one; both bool (N,)."""
    return np.where(chosen, 0, -1).astype(np.int16), np.where(rejected & ~chosen, 0, NEVER).astype(np.int16)


def levels_of_ratings(rating: np.ndarray, values: np.ndarray, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """`Log.chosen` and `Log.rejected` where an item is preferred to those rated lower by `gap` or more.

    Args:
        rating: float32 (N,); NaN if there is none, which is in no pair.
        values: float32, at most NEVER: the different ratings, ascending.
        gap: above 0.
    """
    missing = np.isnan(rating)
    # Thresholds are float32, like the ratings: 4.1 is .1 above 4.
    above = np.searchsorted(values, (values.astype(np.float64) + gap).astype(np.float32))
    above = np.append(np.where(above < len(values), above, NEVER), NEVER).astype(np.int16)
    chosen = np.where(missing, -1, np.searchsorted(values, rating)).astype(np.int16)
    return chosen, above[chosen]  # the last one for −1


@dataclass(frozen=True)
class Pairs:
    """R pairs, as indices of interactions in the log.

    Attributes:
        chosen: int64 (R,).
        rejected: int64 (R, K), nearest first; −1 where there are fewer than K.
        earliest: int64 (R,): the earliest one of the pair. What came before it is the history.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    earliest: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)


def parts_of_log(user: np.ndarray, positive: np.ndarray, part: np.ndarray) -> np.ndarray:
    """(N,) the part of each interaction, given that of the P positive ones: the part of the user's last positive one.

    So what a user rejected after the validation item is not training data either.
    """
    if not len(part):
        return np.full(len(user), TRAIN, np.int8)
    before = np.cumsum(positive)  # positives up to and including this one
    last = np.where(before > 0, part[np.maximum(before - 1, 0)], TRAIN)
    owner = user[np.flatnonzero(positive)][np.maximum(before - 1, 0)]
    return np.where((before > 0) & (owner == user), last, TRAIN).astype(np.int8)


@dataclass(frozen=True)
class PairLimits:
    """Attributes:
    window: maximum distance between chosen and rejected, in interactions.
    most_rejected: K.
    per_user: maximum number of training pairs and of validation pairs per user; None for all.
    by_held_out_users: some users of the whole import are held out.
    """

    window: int
    most_rejected: int
    per_user: int | None
    by_held_out_users: bool


def make_pairs(
    log: Log, held_out_user: np.ndarray, limits: PairLimits, of_validation: Draws, of_training: Draws
) -> tuple[Pairs, Pairs]:
    """Returns the pairs for training and those for validation.

    If users are held out, the validation pairs are the pairs of these users. Otherwise they are the pairs whose chosen
    item is a validation item; an item that is rejected in one of them is rejected in no training pair of the same user.
    Test items are in no pair.

    Args:
        held_out_user: bool (U,).
        of_validation, of_training: two, so that no training pair depends on how many validation pairs there are.
    """
    known = log.part != TEST
    if limits.by_held_out_users:
        held_out = held_out_user[log.user]
        validation = find_pairs(log, known & held_out, known & held_out, limits, of_validation)
        training = known & ~held_out & (log.part == TRAIN)
        return find_pairs(log, training, training, limits, of_training), validation
    validation = find_pairs(log, log.part == VALIDATION, known, limits, of_validation)
    used = validation.rejected[validation.rejected >= 0]
    training = log.part == TRAIN
    fresh = training & ~np.isin(_key(log), _key(log)[used])
    return find_pairs(log, training, fresh, limits, of_training), validation


def find_pairs(log: Log, may_choose: np.ndarray, may_reject: np.ndarray, limits: PairLimits, draws: Draws) -> Pairs:
    """Pairs each chosen interaction with the user's nearest rejected ones, at most `window` interactions away.

    An item that the user chose as much, in an interaction that may be chosen or rejected here, is not rejected, and an
    item is rejected at most once in a pair; K + REPEATS rejected interactions on each side are examined. Chosen and
    rejected interactions must have a positive one of the same user before them.
    """
    window, most_rejected = limits.window, limits.most_rejected
    before = np.cumsum(log.positive) - log.positive
    with_history = before > before[user_offsets(log.user, int(log.user.max(initial=-1)) + 1)[log.user]]
    key = _key(log)

    def rejected_at(level: int) -> np.ndarray:
        liked = (log.chosen >= level) & (may_choose | may_reject)
        rejected = np.flatnonzero((log.rejected <= level) & may_reject & with_history)
        return rejected[~np.isin(key[rejected], key[liked])]

    candidates = np.flatnonzero((log.chosen >= 0) & may_choose & with_history)
    rejected_of = {level: rejected_at(level) for level in np.unique(log.chosen[candidates]).tolist()}
    usable = np.zeros(len(candidates), bool)
    for level, rejected in rejected_of.items():
        here = np.flatnonzero(log.chosen[candidates] == level)
        usable[here] = _has_rejected_nearby(candidates[here], rejected, log.user, window)
    chosen = candidates[usable]
    first, count = np.unique(log.user[chosen], return_index=True, return_counts=True)[1:]
    owner, place = draw_places(count, limits.per_user, draws)
    chosen = chosen[first[owner] + place]
    partners = np.full((len(chosen), most_rejected), -1)
    for level, rejected in rejected_of.items():
        here = np.flatnonzero(log.chosen[chosen] == level)
        for block in (here[at : at + BLOCK] for at in range(0, len(here), BLOCK)):
            partners[block] = _nearest(chosen[block], rejected, log.user, key, window, most_rejected)
    earliest = np.minimum(chosen, np.where(partners < 0, chosen[:, None], partners).min(axis=1))
    return Pairs(chosen, partners, earliest)


def _key(log: Log) -> np.ndarray:
    """int64 (N,): equal for the same user and the same meaning."""
    return log.user.astype(np.int64) * (int(log.meaning.max(initial=0)) + 1) + log.meaning


def _has_rejected_nearby(chosen: np.ndarray, rejected: np.ndarray, user: np.ndarray, window: int) -> np.ndarray:
    """bool (R,): whether the user of a chosen interaction has a rejected one within the window."""
    if not len(rejected):
        return np.zeros(len(chosen), bool)
    at = np.searchsorted(rejected, chosen)
    left, right = rejected[np.maximum(at - 1, 0)], rejected[np.minimum(at, len(rejected) - 1)]
    close = [(np.abs(other - chosen) <= window) & (user[other] == user[chosen]) for other in (left, right)]
    return close[0] | close[1]


def _nearest(
    chosen: np.ndarray, rejected: np.ndarray, user: np.ndarray, key: np.ndarray, window: int, most: int
) -> np.ndarray:
    """int64 (R, most): the nearest rejected interactions, the earlier one first at equal distance; padded with −1."""
    reach = most + REPEATS
    at = np.searchsorted(rejected, chosen)[:, None] + np.arange(-reach, reach)
    inside = (at >= 0) & (at < len(rejected))
    other = rejected[np.clip(at, 0, len(rejected) - 1)]
    distance = np.abs(other - chosen[:, None])
    valid = inside & (distance <= window) & (user[other] == user[chosen][:, None])
    order = np.argsort(np.where(valid, distance, np.iinfo(np.int64).max), axis=1, kind="stable")
    other, valid = np.take_along_axis(other, order, 1), np.take_along_axis(valid, order, 1)
    for column in range(1, other.shape[1]):
        repeated = (key[other[:, :column]] == key[other[:, column]][:, None]) & valid[:, :column]
        valid[:, column] &= ~repeated.any(axis=1)
    order = np.argsort(~valid, axis=1, kind="stable")[:, :most]
    return np.where(np.take_along_axis(valid, order, 1), np.take_along_axis(other, order, 1), -1)
