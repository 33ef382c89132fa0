"""Seeded stratified sampling: a few places out of many, spread evenly over them."""

import numpy as np


def draw_places(counts: np.ndarray, most: int | None, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws at most `most` of each owner's places 0, …, counts[owner] − 1; all of them if `most` is None.

    If an owner has more places, they are divided into `most` intervals of equal length and one place is drawn from
    each, so that early and late places both occur.

    Returns:
        owner, place: int64 (D,), ascending.
    """
    kept = counts if most is None else np.minimum(counts, most)
    owner = np.repeat(np.arange(len(kept)), kept)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(kept) - kept, kept)
    low = number * counts[owner] // kept[owner]
    high = (number + 1) * counts[owner] // kept[owner]
    return owner, low + (rng.random(len(owner)) * (high - low)).astype(np.int64)
