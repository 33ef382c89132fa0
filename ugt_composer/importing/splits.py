"""Splits interactions into training, validation and test parts, and makes rows of the parts.

Arrays hold P interactions of U users, grouped by user, oldest first: `user` int (P,), ascending.
"""

from dataclasses import dataclass

import numpy as np

from ugt_composer.errors import UserError
from ugt_composer.importing.draws import Draws, draw_places

TRAIN, VALIDATION, TEST = range(3)
PARTS = ("train", "validation", "test")
LEAVE_ONE_OUT, TIME = "leave-one-out", "time"
FEWEST = 3  # smallest --min-interactions: one interaction each for training, validation and test


@dataclass(frozen=True)
class Ranges:
    """R rows: the user of each, and a range of the user's interactions, start to stop.

    Attributes:
        user, start, stop: int64 (R,).
    """

    user: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    def __len__(self) -> int:
        return len(self.user)


def user_offsets(user: np.ndarray, users: int) -> np.ndarray:
    """int64 (U + 1,): user u's interactions are offsets[u] to offsets[u + 1]."""
    return np.concatenate([[0], np.cumsum(np.bincount(user, minlength=users))]).astype(np.int64)


def leave_one_out(user: np.ndarray, offsets: np.ndarray, min_interactions: int) -> np.ndarray:
    """The part (P,) of each interaction: a user's last is TEST, the one before VALIDATION, the others TRAIN.

    All interactions of users with fewer than `min_interactions` are TRAIN.
    """
    if min_interactions < FEWEST:
        raise UserError(f"--min-interactions {min_interactions}: expected at least {FEWEST}: one for each part")
    from_end = offsets[user + 1] - 1 - np.arange(len(user))
    part = np.where(from_end == 0, TEST, np.where(from_end == 1, VALIDATION, TRAIN)).astype(np.int8)
    part[np.diff(offsets)[user] < min_interactions] = TRAIN
    return part


def by_time(time: np.ndarray, validation_from: float, test_from: float) -> np.ndarray:
    """The part (P,) of each interaction by time: VALIDATION from `validation_from`, TEST from `test_from` on."""
    return ((time >= validation_from).astype(np.int8) + (time >= test_from)).astype(np.int8)


def training_targets(
    trained: np.ndarray, offsets: np.ndarray, cuts: int | None, max_targets: int, draws: Draws
) -> Ranges:
    """Cuts each user's training part into history and targets; returns the targets.

    A training part of n items can be cut after 1, …, n − 1 of them. At most `cuts` places are drawn; None: all.

    Args:
        trained: bool (P,): the training part; each user's is a prefix, maybe empty, of the user's interactions.
    """
    counts = np.diff(np.concatenate([[0], np.cumsum(trained)])[offsets])
    places = np.maximum(counts - 1, 0)
    user, place = draw_places(places, cuts, draws)
    start = offsets[user] + 1 + place
    return Ranges(user, start, np.minimum(start + max_targets, offsets[user] + counts[user]))


def held_out_targets(part: np.ndarray, wanted: int, user: np.ndarray, offsets: np.ndarray, only_first: bool) -> Ranges:
    """A target for each interaction of a part, or only for each user's first.

    A user's first interaction is no target, because it has no history.
    """
    start = np.flatnonzero((part == wanted) & (np.arange(len(part)) > offsets[user]))
    if only_first:
        start = start[np.unique(user[start], return_index=True)[1]]
    return Ranges(user[start].astype(np.int64), start, start + 1)
