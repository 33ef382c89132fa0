"""K-means of vectors of integers, whose result depends neither on the processor nor on the number of threads.

All distances and sums are integers below 2^53, so they are exact in float64. Centres are rounded to integers. With
equal distances, the centre or vector with the smallest number is chosen.

n vectors of d dimensions, k centres.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Integers = NDArray[np.float64]

MOST_VECTORS = 50_000  # that determine the centres: a sample, if there are more
PER_CENTRE = 32  # vectors per centre in the sample of the restarts
RESTARTS = 4
MOST_STEPS = 100
RESTARTS_GAIN, LEAST_GAIN = 1e-3, 1e-5  # a step that lowers the sum of distances by a smaller fraction is the last
BLOCK = 1 << 22  # distances computed at a time


def kmeans(vectors: Integers, count: int, seed: int) -> tuple[NDArray[np.int64], Integers]:
    """Labels int64 (n,) and centres (count, d), the best of RESTARTS, each begun by k-means++.

    Args:
        vectors: integers (n, d), at most 2^18 in absolute value.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(vectors))
    few, many = (vectors[np.sort(order[:most])] for most in (PER_CENTRE * count, MOST_VECTORS))
    runs = [_lloyd(few, _plus_plus(few, count, rng), RESTARTS_GAIN) for _ in range(RESTARTS)]
    _, centres = _lloyd(many, min(runs, key=lambda run: run[0])[1], LEAST_GAIN)
    return _nearest(vectors, centres)[0], centres


def nearest(vectors: Integers, centres: Integers) -> NDArray[np.int64]:
    """The number of each vector's nearest centre, int64 (n,)."""
    return _nearest(vectors, centres)[0]


def _plus_plus(vectors: Integers, count: int, rng: np.random.Generator) -> Integers:
    """Centres (count, d) drawn from the vectors by greedy k-means++ (Arthur and Vassilvitskii, 2007)."""
    squares, trials = np.square(vectors).sum(axis=1), 2 + int(np.log(count))
    chosen = [int(rng.integers(len(vectors)))]
    nearest = _distances(vectors, squares, chosen)[0]
    while len(chosen) < count:
        ends = np.cumsum(nearest.astype(np.int64))
        if ends[-1] == 0:  # fewer different vectors than centres
            chosen += [chosen[0]] * (count - len(chosen))
            break
        places = np.searchsorted(ends, rng.integers(ends[-1], size=trials), side="right")
        closer = np.minimum(_distances(vectors, squares, places), nearest)
        best = int(closer.astype(np.int64).sum(axis=1).argmin())
        chosen.append(int(places[best]))
        nearest = closer[best]
    return vectors[chosen]


def _distances(vectors: Integers, squares: Integers, chosen: list[int] | NDArray[np.int64]) -> Integers:
    """(m, n) squared distances of the m chosen vectors from all."""
    return squares[chosen, None] + squares - 2 * (vectors[chosen] @ vectors.T)


def _lloyd(vectors: Integers, centres: Integers, least_gain: float) -> tuple[int, Integers]:
    """Moves the centres to the means of their vectors until that gains little. Returns the sum of distances too."""
    before: int | None = None
    squares = np.square(vectors).sum(axis=1)
    for _ in range(MOST_STEPS):
        labels, scores = _nearest(vectors, centres)
        distances = (squares + scores).astype(np.int64)
        total = int(distances.sum())
        if before is not None and before - total <= least_gain * before:
            break
        before, centres = total, _means(vectors, labels, distances, centres)
    return total, centres


def _nearest(vectors: Integers, centres: Integers) -> tuple[NDArray[np.int64], Integers]:
    """The nearest centre of each vector, int64 (n,), and its squared distance minus the vector's squared length."""
    labels, scores = np.empty(len(vectors), np.int64), np.empty(len(vectors))
    squares, doubled = np.square(centres).sum(axis=1), -2 * centres.T
    step = max(BLOCK // len(centres), 1)
    for start in range(0, len(vectors), step):
        block = vectors[start : start + step] @ doubled
        block += squares
        labels[start : start + step] = best = block.argmin(axis=1)
        scores[start : start + step] = block[np.arange(len(block)), best]
    return labels, scores


def _means(vectors: Integers, labels: NDArray[np.int64], distances: NDArray[np.int64], centres: Integers) -> Integers:
    """Rounded means (k, d). A centre without vectors moves to one of the vectors that are farthest from theirs."""
    counts = np.bincount(labels, minlength=len(centres))
    members = sparse.csr_matrix((np.ones(len(labels)), (labels, np.arange(len(labels)))), (len(centres), len(labels)))
    means = np.rint((members @ vectors) / np.maximum(counts, 1)[:, None])
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        means[empty] = vectors[np.argsort(-distances, kind="stable")[: len(empty)]]
    return means
