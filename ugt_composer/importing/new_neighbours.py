"""Neighbours of items that are added to a catalogue: nothing was counted for them, so their vectors say which they are.

k old items, m new ones after them, n = k + m in total, K neighbours, d dimensions.
"""

import numpy as np
from scipy import sparse

from ugt_composer.importing.exact import normalized
from ugt_composer.importing.item_vectors import nearest
from ugt_composer.importing.neighbours import best_of_rows

NEAREST = 20  # neighbours of a new item, with equal probabilities; chosen on the validation items of Amazon Beauty


def with_new_items(
    neighbours: np.ndarray, probabilities: np.ndarray, vectors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The neighbours (n, K) of all items and their probabilities, like those of `count_neighbours`.

    A new item's neighbours are the NEAREST items by the cosine of their vectors, old or new. It becomes a neighbour of
    the NEAREST old ones, with the probability 1 / NEAREST beside the counted ones; an old item's probabilities are then
    divided by 1 plus those of its new neighbours, and still sum to at most 1.

    Args:
        neighbours: int (k, K), -1: none.
        probabilities: (k, K).
        vectors: (n, d), old items first; 0 where nothing is known of an item, which then gets no neighbours by vectors
            and becomes none.
    """
    old, items = len(neighbours), len(vectors)
    vectors = normalized(vectors.astype(np.float64))
    known = np.flatnonzero(vectors.any(axis=1))
    vectors, known_old = vectors[known], int((known < old).sum())
    new = known[known_old:]
    row, place = np.nonzero(neighbours >= 0)
    counted = _matrix(row, neighbours[row, place], probabilities[row, place], items)
    near_old = known[nearest(vectors[known_old:], vectors[:known_old], NEAREST)]
    added = _matrix(near_old.ravel(), np.repeat(new, near_old.shape[1]), 1 / NEAREST, items)
    near = known[nearest(vectors[known_old:], vectors, NEAREST, leave_out=np.arange(known_old, len(known)))]
    of_new = _matrix(np.repeat(new, near.shape[1]), near.ravel(), 1 / NEAREST, items)
    totals = 1 + np.asarray(added.sum(axis=1)).ravel()
    return best_of_rows((sparse.diags(1 / totals) @ (counted + added) + of_new).tocsr())


def _matrix(row: np.ndarray, column: np.ndarray, values: np.ndarray | float, items: int) -> sparse.csr_matrix:
    values = np.broadcast_to(np.asarray(values, np.float64), row.shape)
    return sparse.coo_matrix((values, (row, column)), shape=(items, items)).tocsr()
