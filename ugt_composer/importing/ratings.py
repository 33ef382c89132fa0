"""Counts of ratings, added up over partitions."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ratings:
    """Attributes:
    values: float32 (n,) all different ratings, ascending.
    counts: int64 (n,) how many interactions have each.
    missing: how many interactions have none.
    """

    values: np.ndarray
    counts: np.ndarray
    missing: int

    def __add__(self, other: "Ratings") -> "Ratings":
        values, place = np.unique(np.concatenate([self.values, other.values]), return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, place, np.concatenate([self.counts, other.counts]))
        return Ratings(values, counts, self.missing + other.missing)


def ratings_of(rating: np.ndarray) -> Ratings:
    """Counts ratings float32 (n,), NaN where there is none."""
    known = rating[~np.isnan(rating)]
    values, counts = np.unique(known, return_counts=True)
    return Ratings(values, counts, len(rating) - len(known))
