"""Vectors of items from which items users chose close together in time, and vectors of several sources joined.

I items, P training interactions, d dimensions. Rows have length 1, or 0 where nothing is known of an item.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from ugt_composer.importing.exact import normalized, unit_steps
from ugt_composer.importing.pair_counts import PairCounts
from ugt_composer.importing.svd import LEAST, Reduction

NEIGHBOURS = 5  # similar items whose mean replaces the missing vector of an item
MOST_COMPARED = 50_000  # items that these are looked for among: some of all parts of the catalogue, if there are more
BLOCK = 2048  # items compared with all others at a time


def cooccurrence_vectors(pairs: PairCounts, dimensions: int, seed: int) -> np.ndarray:
    """float32 (I, d), from how much more often than by chance two items are near each other.

    Positive pointwise mutual information with context distribution smoothing, reduced by a singular value
    decomposition: what skip-gram with negative sampling factorises (Levy and Goldberg, 2014; Levy et al., 2015).
    A pair counts the less the further its items are apart.
    """
    counts = sparse.csr_matrix(pairs.at[0].shape, dtype=np.float32)
    for distance, times in enumerate(pairs.at, start=1):
        # The sum of as many equal float32 numbers, each rounded: the same for all who count.
        sums = np.cumsum(np.full(times.data.max(initial=1), 1 / distance, np.float32), dtype=np.float32)
        counts = counts + sparse.csr_matrix((sums[times.data - 1], times.indices, times.indptr), times.shape)
    counts = (counts + counts.T).tocoo()
    total = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    if not counts.nnz:
        return np.zeros((counts.shape[0], 1), np.float32)
    context = total**0.75 / (total**0.75).sum()
    mutual = np.log(counts.data / (total[counts.row] * context[counts.col]))
    kept = (mutual > LEAST) & (counts.row != counts.col)
    matrix = sparse.coo_matrix((mutual[kept], (counts.row[kept], counts.col[kept])), shape=counts.shape).tocsr()
    return Reduction.of(matrix, dimensions, seed).vectors


def joined_vectors(parts: Sequence[np.ndarray], weights: Sequence[float], seed: int) -> np.ndarray:
    """float32 (I, d): the parts concatenated, each multiplied by the square root of its weight.

    An item that one part has no vector for gets the mean vector of the items most similar to it in the other parts. An
    item without any vector gets that of a random item, so that such items spread over the codes instead of sharing one.
    """
    rng = np.random.default_rng(seed)
    known = [np.linalg.norm(part, axis=1) > 0 for part in parts]
    any_known = np.flatnonzero(np.any(known, axis=0))
    if not len(any_known):
        return rng.standard_normal((len(parts[0]), 8)).astype(np.float32)
    filled = list(parts)
    for at, part in enumerate(parts):
        basis = np.concatenate([other for number, other in enumerate(parts) if number != at] or [part], axis=1)
        missing = np.flatnonzero(~known[at] & (np.linalg.norm(basis, axis=1) > 0))
        present = np.flatnonzero(known[at])
        if len(missing) and len(present):
            filled[at] = part.copy()
            filled[at][missing] = mean_of_nearest(basis[missing], basis[present], part[present])
    vectors = np.concatenate([part * np.sqrt(weight) for part, weight in zip(filled, weights, strict=True)], axis=1)
    unknown = np.flatnonzero(~np.any(known, axis=0))
    vectors[unknown] = vectors[rng.choice(any_known, len(unknown))]
    return vectors.astype(np.float32)


def mean_of_nearest(queries: np.ndarray, basis: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(m, d) of length 1: for each of `queries` (m, e), the mean `values` (n, d) of its nearest `basis` (n, e).

    Of more than MOST_COMPARED rows of `basis`, so many are compared, at equal distances from each other.
    """
    if len(basis) > MOST_COMPARED:
        some = np.arange(MOST_COMPARED) * len(basis) // MOST_COMPARED
        basis, values = basis[some], values[some]
    values = unit_steps(values)
    found = nearest(queries, basis, NEIGHBOURS)
    return normalized(
        np.concatenate([values[found[at : at + BLOCK]].sum(axis=1) for at in range(0, len(found), BLOCK)])
    )


def nearest(queries: np.ndarray, basis: np.ndarray, count: int, leave_out: np.ndarray | None = None) -> np.ndarray:
    """int64 (m, at most count): the `basis` (n, e) with the largest products with each of `queries` (m, e).

    Args:
        leave_out: int64 (m,), a row of `basis` for each query that is not to be found.
    """
    queries, basis = unit_steps(queries), unit_steps(basis)
    count = max(min(count, len(basis) - (leave_out is not None)), 0)
    found = np.empty((len(queries), count), np.int64)
    for start in range(0, len(queries), BLOCK):
        # Whole numbers, made different so that of equally similar vectors the first ones are chosen everywhere.
        keys = (queries[start : start + BLOCK] @ basis.T) * len(basis) - np.arange(len(basis))
        if leave_out is not None:
            keys[np.arange(len(keys)), leave_out[start : start + BLOCK]] = -np.inf
        if count:
            found[start : start + BLOCK] = np.argpartition(-keys, count - 1, axis=1)[:, :count]
    return found
