"""Preference pairs: what a user chose, against what the same user rejected near in time.

Arrays hold N interactions of U users, users one after the other, oldest first. K rejected items at most.
"""

from dataclasses import dataclass

import numpy as np

from ugt_composer.importing.draws import draw_places
from ugt_composer.importing.splits import TEST, TRAIN, VALIDATION, user_offsets

BLOCK = 1 << 19  # pairs made at a time, to bound the memory
REPEATS = 2  # rejected interactions looked at on each side beyond those wanted, for items rejected twice


@dataclass(frozen=True)
class Log:
    """All interactions, those that make histories and those that do not.

    Attributes:
        user: int (N,), ascending.
        meaning: int (N,): equal for items that share a semantic id, which no preference can tell apart.
        part: (N,) TRAIN, VALIDATION or TEST: what is known when.
        positive: bool (N,): part of the histories.
        chosen, rejected: bool (N,): by rating or action.
    """

    user: np.ndarray
    meaning: np.ndarray
    part: np.ndarray
    positive: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """R pairs, as numbers of interactions in the log.

    Attributes:
        chosen: int64 (R,).
        rejected: int64 (R, K), nearest first; −1 where there are fewer.
        history: int64 (R,): how many positive interactions of all users come before the earliest of these.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    history: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)


def parts_of_log(user: np.ndarray, positive: np.ndarray, part: np.ndarray) -> np.ndarray:
    """(N,) the part of each interaction, where only the positive ones (P,) were split: that of the last one before it.

    So what a user rejected after the validation item is no training data either.
    """
    before = np.cumsum(positive)  # positives up to and including this one
    last = np.where(before > 0, part[np.maximum(before - 1, 0)], TRAIN)
    owner = user[np.flatnonzero(positive)][np.maximum(before - 1, 0)]
    return np.where((before > 0) & (owner == user), last, TRAIN).astype(np.int8)


def make_pairs(
    log: Log, held_out_user: np.ndarray, window: int, most_rejected: int, per_user: int | None, rng: np.random.Generator
) -> tuple[Pairs, Pairs]:
    """Pairs to train and to validate with.

    With users held out, theirs validate, and theirs alone. Without, those validate whose chosen item is a validation
    item; what is rejected in one of them is rejected in no training pair of the user. Test items are in no pair.

    Args:
        held_out_user: bool (U,).
        window: how many interactions apart chosen and rejected are at most.
        most_rejected: K.
        per_user: training and validation pairs of a user, at most; None for all.
    """
    known = log.part != TEST
    if held_out_user.any():
        apart = held_out_user[log.user]
        validation = find_pairs(log, known & apart, known & apart, window, most_rejected, per_user, rng)
        training = known & ~apart & (log.part == TRAIN)
        return find_pairs(log, training, training, window, most_rejected, per_user, rng), validation
    validation = find_pairs(log, log.part == VALIDATION, known, window, most_rejected, per_user, rng)
    used = validation.rejected[validation.rejected >= 0]
    training = log.part == TRAIN
    fresh = training & ~np.isin(_key(log), _key(log)[used])
    return find_pairs(log, training, fresh, window, most_rejected, per_user, rng), validation


def find_pairs(
    log: Log,
    may_choose: np.ndarray,
    may_reject: np.ndarray,
    window: int,
    most_rejected: int,
    per_user: int | None,
    rng: np.random.Generator,
) -> Pairs:
    """Each chosen interaction with the nearest rejected ones of the user, at most `window` interactions away.

    An item that the user chose (within what may be known) is never a rejected one, and one item is rejected once in
    a pair; K + REPEATS rejected interactions on each side are looked at. Both need a history.
    """
    before = np.cumsum(log.positive) - log.positive
    with_history = before > before[user_offsets(log.user, int(log.user.max()) + 1)[log.user]]
    key = _key(log)
    liked = log.chosen & (may_choose | may_reject)
    chosen = np.flatnonzero(log.chosen & may_choose & with_history)
    rejected = np.flatnonzero(log.rejected & may_reject & with_history)
    rejected = rejected[~np.isin(key[rejected], key[liked])]
    if not len(chosen) or not len(rejected):
        return Pairs(np.zeros(0, np.int64), np.zeros((0, most_rejected), np.int64), np.zeros(0, np.int64))
    chosen = chosen[_near(chosen, rejected, log.user, window)]
    first, count = np.unique(log.user[chosen], return_index=True, return_counts=True)[1:]
    owner, place = draw_places(count, per_user, rng)
    chosen = chosen[first[owner] + place]
    blocks = [chosen[at : at + BLOCK] for at in range(0, len(chosen), BLOCK)]
    found = [_nearest(block, rejected, log.user, key, window, most_rejected) for block in blocks]
    partners = np.concatenate([np.zeros((0, most_rejected), np.int64), *found])
    earliest = np.minimum(chosen, np.where(partners < 0, chosen[:, None], partners).min(axis=1))
    return Pairs(chosen, partners, before[earliest])


def _key(log: Log) -> np.ndarray:
    """int64 (N,): equal for the same user and the same meaning."""
    return log.user.astype(np.int64) * (int(log.meaning.max(initial=0)) + 1) + log.meaning


def _near(chosen: np.ndarray, rejected: np.ndarray, user: np.ndarray, window: int) -> np.ndarray:
    """bool: whether a chosen interaction has a rejected one of its user within the window."""
    at = np.searchsorted(rejected, chosen)
    left, right = rejected[np.maximum(at - 1, 0)], rejected[np.minimum(at, len(rejected) - 1)]
    close = [(np.abs(other - chosen) <= window) & (user[other] == user[chosen]) for other in (left, right)]
    return close[0] | close[1]


def _nearest(
    chosen: np.ndarray, rejected: np.ndarray, user: np.ndarray, key: np.ndarray, window: int, most: int
) -> np.ndarray:
    """int64 (R, most): the nearest rejected interactions, the earlier one where two are as near; −1 to fill up."""
    reach = most + REPEATS
    at = np.searchsorted(rejected, chosen)[:, None] + np.arange(-reach, reach)
    inside = (at >= 0) & (at < len(rejected))
    other = rejected[np.clip(at, 0, len(rejected) - 1)]
    distance = np.abs(other - chosen[:, None])
    valid = inside & (distance <= window) & (user[other] == user[chosen][:, None])
    order = np.argsort(np.where(valid, distance, np.iinfo(np.int64).max), axis=1, kind="stable")
    other, valid = np.take_along_axis(other, order, 1), np.take_along_axis(valid, order, 1)
    for column in range(1, other.shape[1]):
        again = (key[other[:, :column]] == key[other[:, column]][:, None]) & valid[:, :column]
        valid[:, column] &= ~again.any(axis=1)
    order = np.argsort(~valid, axis=1, kind="stable")[:, :most]
    return np.where(np.take_along_axis(valid, order, 1), np.take_along_axis(other, order, 1), -1)
