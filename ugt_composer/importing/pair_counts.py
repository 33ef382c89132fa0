"""Counts how often two items are a given number of interactions apart in a user's history.

P training interactions, n items.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import xxhash
from scipy import sparse

PIECE = 1 << 13  # items whose counts are added up at a time
MAX_PAIRS = 50_000_000  # of interactions that are paired, about: what one process adds up and factorises


@dataclass(frozen=True)
class PairSample:
    """Which interactions are paired.

    Attributes:
        window: how far they are apart at most.
        one_of: one of so many users is taken, chosen by a hash of the user's id.
    """

    window: int
    one_of: int

    @classmethod
    def of(cls, window: int, interactions: int) -> "PairSample":
        """With about MAX_PAIRS pairs at most: the window is narrowed first, then users are left out."""
        narrowed = min(window, max(MAX_PAIRS // max(interactions, 1), 1))
        return cls(narrowed, max(-(-interactions // MAX_PAIRS), 1))

    @property
    def facts(self) -> dict[str, int]:
        """For the report."""
        return {"window": self.window, "one_user_of": self.one_of}

    def users(self, ids: pl.Series) -> np.ndarray:
        """bool (U,): which users, text (U,), are taken."""
        return np.array([xxhash.xxh3_64_intdigest(user.encode()) % self.one_of == 0 for user in ids], bool)


@dataclass(frozen=True)
class PairCounts:
    """Counts of pairs, by distance.

    Attributes:
        at: for distances 1, 2, …: int32 sparse (n, n), how often item j comes so many interactions after item i.
    """

    at: tuple[sparse.csr_matrix, ...]

    def __add__(self, other: "PairCounts") -> "PairCounts":
        return PairCounts(tuple(one + another for one, another in zip(self.at, other.at, strict=True)))

    def pieces(self) -> list["PairCounts"]:
        """The counts of the first PIECE items, of the next ones, …"""
        return [PairCounts(tuple(counts[rows] for counts in self.at)) for rows in _slices(self.at[0].shape[0])]

    @classmethod
    def joined(cls, pieces: Sequence["PairCounts"]) -> "PairCounts":
        return cls(tuple(sparse.vstack(counts, "csr") for counts in zip(*(one.at for one in pieces), strict=True)))


@dataclass(frozen=True)
class NearCounts:
    """Counts of pairs of two different items, and of items.

    Attributes:
        following: int32 sparse (n, n), how often item j follows item i directly.
        within: int32 sparse (n, n), how often item j comes after item i within the window.
        items: int64 (n,) interactions of each item.
    """

    following: sparse.csr_matrix
    within: sparse.csr_matrix
    items: np.ndarray

    def __add__(self, other: "NearCounts") -> "NearCounts":
        return NearCounts(self.following + other.following, self.within + other.within, self.items + other.items)

    def pieces(self) -> list["NearCounts"]:
        """The counts of the first PIECE items, of the next ones, …"""
        slices = _slices(len(self.items))
        return [NearCounts(self.following[rows], self.within[rows], self.items[rows]) for rows in slices]

    @classmethod
    def joined(cls, pieces: Sequence["NearCounts"]) -> "NearCounts":
        following = sparse.vstack([one.following for one in pieces], "csr")
        within = sparse.vstack([one.within for one in pieces], "csr")
        return cls(following, within, np.concatenate([one.items for one in pieces]))


def _slices(items: int) -> list[slice]:
    return [slice(start, min(start + PIECE, items)) for start in range(0, items, PIECE)]


def count_pairs(user: np.ndarray, item: np.ndarray, items: int, window: int) -> PairCounts:
    """Args:
    user, item: int (P,), grouped by user, oldest first.
    """
    return PairCounts(tuple(_count_at(user, item, items, distance) for distance in range(1, window + 1)))


def count_near(user: np.ndarray, item: np.ndarray, items: int, window: int) -> NearCounts:
    """Like `count_pairs`, without pairs of an item with itself."""
    following = within = _without_diagonal(_count_at(user, item, items, 1))
    for distance in range(2, window + 1):
        within = within + _without_diagonal(_count_at(user, item, items, distance))
    return NearCounts(following, within, np.bincount(item, minlength=items))


def _count_at(user: np.ndarray, item: np.ndarray, items: int, distance: int) -> sparse.csr_matrix:
    same = user[distance:] == user[:-distance]
    pair = item[:-distance][same], item[distance:][same]
    return sparse.coo_matrix((np.ones(len(pair[0]), np.int32), pair), shape=(items, items)).tocsr()


def _without_diagonal(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    counts.data[counts.indices == row] = 0
    counts.eliminate_zeros()
    return counts
