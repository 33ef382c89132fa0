"""The k-core of interactions: what is left when rare users and items are removed until there are none."""

import numpy as np


def k_core(user: np.ndarray, item: np.ndarray, k: int) -> tuple[np.ndarray, int]:
    """The largest set of interactions in which each user and each item has at least k of them.

    Args:
        user, item: int (P,).

    Returns:
        bool (P,) the interactions that are left; and the number of rounds in which some were removed.
    """
    left = np.arange(len(user))
    rounds = 0
    while len(left):
        users, items = user[left], item[left]
        kept = (np.bincount(users)[users] >= k) & (np.bincount(items)[items] >= k)
        if kept.all():
            break
        left = left[kept]
        rounds += 1
    mask = np.zeros(len(user), bool)
    mask[left] = True
    return mask, rounds
