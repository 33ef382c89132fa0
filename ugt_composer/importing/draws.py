"""Seeded stratified sampling: a few places out of many, spread evenly over them."""

import numpy as np


class Draws:
    """Uniform random numbers of a seed, from a place in their sequence on, so that partitions draw one sequence."""

    def __init__(self, seed: int, skip: int = 0, stream: int | None = None):
        """Args:
        skip: how many numbers earlier partitions have drawn.
        stream: one of several sequences of the seed; None: the sequence of the seed itself.
        """
        rng = np.random.default_rng(seed)
        self._rng = rng if stream is None else rng.spawn(stream + 1)[stream]
        assert isinstance(self._rng.bit_generator, np.random.PCG64)
        self._rng.bit_generator.advance(skip)  # a number is one step
        self.count = 0  # how many were drawn

    def random(self, count: int) -> np.ndarray:
        """float64 (count,) in [0, 1)."""
        self.count += count
        return self._rng.random(count)


def draw_places(counts: np.ndarray, most: int | None, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
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
    return owner, low + (draws.random(len(owner)) * (high - low)).astype(np.int64)
