"""Counts which items users choose after an item, or near it: the file `item_neighbours.npz`.

n items, K neighbours.
"""

import numpy as np
from scipy import sparse

from ugt_composer.importing.pair_counts import NearCounts

FILE = "item_neighbours.npz"
MOST = 50  # neighbours of an item; on the validation items of Amazon Beauty 100 ranked no better
WINDOW = 20  # interactions between two items that are near each other
NEXT_FRACTION = 0.5  # of the items that followed directly; the rest is that of near items. Chosen on the same items


def neighbours_of(near_counts: NearCounts) -> tuple[np.ndarray, np.ndarray]:
    """The most probable neighbours of each item, int32 (n, K), best first, -1: none; and their probabilities (n, K).

    The probability of j after i is NEXT_FRACTION · count(i, then j) / (1 + count(i, then any)) + (1 - NEXT_FRACTION) ·
    cosine(i, j) / Σ cosine(i, any), where the cosine is that of the two items' sets of interactions, of which a pair
    counts as common if one user has both at most WINDOW interactions apart. Rows sum to at most 1.
    """
    following = near_counts.following.astype(np.float64)
    near = near_counts.within.astype(np.float64)
    near = near + near.T
    scale = sparse.diags(1 / np.sqrt(np.maximum(near_counts.items, 1)))
    near = scale @ near @ scale
    near_total = np.asarray(near.sum(axis=1)).ravel()
    following_total = np.asarray(following.sum(axis=1)).ravel()
    near = sparse.diags((1 - NEXT_FRACTION) / np.where(near_total > 0, near_total, 1)) @ near
    return best_of_rows((near + sparse.diags(NEXT_FRACTION / (1 + following_total)) @ following).tocsr())


def best_of_rows(matrix: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """The columns (n, K) of the MOST largest values of each row, -1: none; and the values. Ties go to lower columns."""
    matrix.sort_indices()
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, row))
    place = np.arange(len(order)) - matrix.indptr[row]
    kept = place < MOST
    width = int(place[kept].max(initial=-1)) + 1 or 1
    columns = np.full((matrix.shape[0], width), -1, np.int32)
    values = np.zeros((matrix.shape[0], width), np.float32)
    at = row[kept], place[kept]
    columns[at], values[at] = matrix.indices[order[kept]], matrix.data[order[kept]]
    return columns, values
