"""The k-core of interactions: what is left when rare users and items are removed until there are none."""

from dataclasses import dataclass

import numpy as np

from ugt_composer.importing.partitions import Partitions

UserItems = tuple[np.ndarray, np.ndarray]  # user, item: int (P,) of a partition, which has all interactions of a user


@dataclass(frozen=True)
class Core:
    """The largest set of interactions in which each user and each item has at least k of them.

    Attributes:
        item_counts: int64 (I,) how many interactions of the core each item has.
        first, left: number of interactions, and of those in the core.
        rounds: in which some were removed.
    """

    item_counts: np.ndarray
    first: int
    left: int
    rounds: int


def k_core(partitions: Partitions[UserItems], items: int, k: int) -> Core:
    """Args:
    items: I.
    """
    counts = partitions.sum(_item_counts, items)
    first, rounds = int(counts.sum()), 0
    while True:
        remaining = partitions.transform(_peeled, counts, k).kept()
        new_counts = remaining.sum(_item_counts, items)
        if new_counts.sum() == counts.sum():
            return Core(counts, first, int(counts.sum()), rounds)
        partitions, counts = remaining, new_counts
        rounds += 1


def _item_counts(pairs: UserItems, items: int) -> np.ndarray:
    return np.bincount(pairs[1], minlength=items)


def _peeled(pairs: UserItems, item_counts: np.ndarray, k: int) -> UserItems:
    user, item = pairs
    kept = (np.bincount(user)[user] >= k) & (item_counts[item] >= k)
    return user[kept], item[kept]
