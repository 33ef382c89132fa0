"""Singular value decompositions whose result is the same on every machine, up to rounding errors that are removed.

n rows, c columns, d dimensions.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.preprocessing import normalize
from sklearn.utils.extmath import randomized_svd

from ugt_composer.importing.exact import rounded

BLOCK = 2048  # rows multiplied at a time
OVERSAMPLED = 10  # singular values computed beyond those that are kept
LEAST = 1e-6  # smaller singular values and lengths, relative to the largest, are rounding errors
LEAST_GAP = 1e-4  # relative difference of singular values that are not regarded as equal


@dataclass(frozen=True)
class Reduction:
    """Rows of a sparse matrix, reduced to at most as many dimensions as were asked for.

    Attributes:
        vectors: float32 (n, d), scaled by the root of the singular values, then to length 1; 0 for empty rows.
        columns: float64 (c, d): another row times these is in proportion to its vector.
    """

    vectors: np.ndarray
    columns: np.ndarray

    @classmethod
    def of(cls, matrix: sparse.csr_matrix, dimensions: int, seed: int) -> "Reduction":
        """Reduces a matrix (n, c).

        Singular vectors have no certain sign, and those of equal singular values no certain direction. So the result is
        rotated to where it is as near as possible to random vectors that depend on the seed alone; and it is rounded.
        """
        size = min(dimensions, min(matrix.shape) - 1)
        if size < 1:
            return cls(rounded(normalize(matrix).toarray()), np.eye(matrix.shape[1]))
        left, values, right = randomized_svd(matrix, size + OVERSAMPLED, n_oversamples=0, n_iter=5, random_state=seed)
        size = _separated(values, size)
        left, values, right = left[:, :size], values[:size], right[:size]
        left[np.diff(matrix.indptr) == 0] = 0
        rotation = _rotation(left, seed)
        vectors = (left * np.sqrt(values)) @ rotation
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        known = lengths > LEAST * lengths.max()  # other rows hold rounding errors only
        columns = (right.T / np.sqrt(values)) @ rotation
        return cls(rounded(vectors / np.where(known, lengths, np.inf)), columns)


def _separated(values: np.ndarray, most: int) -> int:
    """How many singular values (v,) to keep: about `most`, and none that equals the first one left out."""
    values = values[values > LEAST * values[0]]
    most = min(most, len(values))
    following = np.append(values[1:], 0)
    apart = np.flatnonzero(values - following > LEAST_GAP * values) + 1
    near = apart[apart > most - OVERSAMPLED]
    return int(near[np.argmin(np.abs(near - most))]) if len(near) else len(values)


def _rotation(left: np.ndarray, seed: int) -> np.ndarray:
    """(d, d) orthogonal: what brings orthonormal columns (n, d) nearest to normally distributed ones (Procrustes)."""
    rng, product = np.random.default_rng(seed), np.zeros((left.shape[1], left.shape[1]))
    for start in range(0, len(left), BLOCK):
        block = left[start : start + BLOCK]
        product += block.T @ rng.standard_normal(block.shape)
    first, _, second = np.linalg.svd(product)
    return first @ second
