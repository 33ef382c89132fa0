"""Numbers that are the same on every machine.

Floating-point sums depend on their order, which differs between processors, numbers of threads and versions of BLAS.
Sums and products of integers below 2^53 are exact in float64, in any order. So vectors are rounded to integers before
they are compared, and two machines whose vectors differ by rounding errors choose the same semantic IDs.
"""

import numpy as np
from numpy.typing import NDArray

UNIT = 1024  # steps of a coordinate of a vector of length 1
MEDIAN_BITS = 9  # the median of the coordinates' absolute values becomes 2^9 to 2^10
LARGEST = 1 << 18  # larger coordinates are clipped, so that products of 2^16 dimensions stay below 2^53


def unit_steps(vectors: np.ndarray) -> NDArray[np.float64]:
    """Integers (n, d): vectors of at most length 1, in steps of 1 / UNIT."""
    return np.rint(vectors.astype(np.float64) * UNIT)


def rounded(vectors: np.ndarray) -> NDArray[np.float32]:
    """(n, d): rounded to steps of 1 / UNIT, and again of length 1, or 0 where all coordinates are."""
    return normalized(unit_steps(vectors))


def normalized(integers: NDArray[np.float64]) -> NDArray[np.float32]:
    """(n, d): integers divided by the length of their row; roots and quotients are rounded alike everywhere."""
    lengths = np.sqrt(np.square(integers).sum(axis=1, keepdims=True))
    return (integers / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def exponent_of(vectors: np.ndarray) -> int:
    """The power of two that vectors of this scale are multiplied by before they are rounded; 0 if all are zero."""
    sizes = np.abs(vectors[vectors != 0]).astype(np.float64)
    if not len(sizes):
        return 0
    median = np.partition(sizes, len(sizes) // 2)[len(sizes) // 2]
    return MEDIAN_BITS + 1 - int(np.frexp(median)[1])


def integers_of(vectors: np.ndarray, exponent: int | None = None) -> NDArray[np.float64]:
    """Integers (n, d) in proportion to vectors of any scale, up to rounding. The scale is a power of two.

    Args:
        exponent: of that power; None: `exponent_of` these vectors.
    """
    scaled = np.ldexp(vectors.astype(np.float64), exponent_of(vectors) if exponent is None else exponent)
    return np.clip(np.rint(scaled), -LARGEST, LARGEST)
