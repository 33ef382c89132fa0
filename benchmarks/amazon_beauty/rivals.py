"""Baselines without training: popularity, item co-occurrence and transitions, ranked over all items.

Shapes: U users, n items (1 to n; column 0 stays empty).
"""

from pathlib import Path

import numpy as np
from scipy import sparse

HISTORY = 20
_ALL_BUT_LAST, _LATER = slice(None, -1), slice(1, None)
TRANSITION_WEIGHTS = (0.25, 1.0, 4.0, 16.0, 64.0)  # beside the cosines; the best on validation is used
DECAY = 0.5  # of an item's weight per later item; best of 1, .8, .5 and .2 on validation with all items ranked


def read_sequences(path: Path) -> list[list[int]]:
    """The items of each user, oldest first, from lines `user item item …`."""
    return [[int(item) for item in line.split()[1:]] for line in path.read_text().splitlines()]


def popularity_scores(sequences: list[list[int]], items: int) -> np.ndarray:
    """The number of times that each item occurs in training, (n + 1,)."""
    return np.bincount(np.concatenate([sequence[:-2] for sequence in sequences]), minlength=items + 1).astype(float)


def cooccurrence_scores(
    sequences: list[list[int]], items: int, histories: list[list[int]], kind: str
) -> sparse.csr_matrix:
    """Σ over the history of DECAY^age · co-occurrence of the two items, (U, n + 1).

    The co-occurrence is the number of training users who have both items among their last HISTORY items, or the cosine
    of the two items' sets of such users.
    """
    users = _matrix([sequence[:-2] for sequence in sequences], items, decay=1.0)
    users.data[:] = 1.0
    counts = (users.T @ users).tolil()
    counts.setdiag(0)
    related = counts.tocsr()
    if kind == "cosines":
        scale = sparse.diags(1 / np.sqrt(np.maximum(np.asarray(users.sum(axis=0)).ravel(), 1)))
        related = scale @ related @ scale
    return (_matrix(histories, items, DECAY) @ related).tocsr()


def transition_scores(sequences: list[list[int]], items: int, histories: list[list[int]]) -> sparse.csr_matrix:
    """Σ over the history of DECAY^age · the fraction of the item's occurrences in training that the other one followed
    at once, (U, n + 1)."""
    trained = [sequence[:-2] for sequence in sequences]
    before, after = (np.concatenate([np.array(s[part], int) for s in trained]) for part in (_ALL_BUT_LAST, _LATER))
    counts = sparse.csr_matrix((np.ones(len(before)), (before, after)), shape=(items + 1, items + 1))
    occurrences = np.bincount(np.concatenate(trained), minlength=items + 1)
    followed = sparse.diags(1 / np.maximum(occurrences, 1)) @ counts
    return (_matrix(histories, items, DECAY) @ followed).tocsr()


def _matrix(histories: list[list[int]], items: int, decay: float) -> sparse.csr_matrix:
    recent = [history[-HISTORY:] for history in histories]
    rows = np.repeat(np.arange(len(recent)), [len(history) for history in recent])
    values = np.concatenate([decay ** np.arange(len(history) - 1, -1, -1) for history in recent])
    return sparse.csr_matrix((values, (rows, np.concatenate(recent))), shape=(len(recent), items + 1))


def ranks_of(
    scores: np.ndarray | sparse.csr_matrix, histories: list[list[int]], targets: np.ndarray, exclude_seen: bool
) -> np.ndarray:
    """How many items rank above each target. Of items with equal scores, the one with the smaller number is first."""
    ranks = []
    for start in range(0, len(targets), 1000):
        rows = slice(start, start + 1000)
        row_targets = targets[rows, None]
        block = scores[rows].toarray() if sparse.issparse(scores) else np.tile(scores, (len(row_targets), 1))
        block[:, 0] = -1
        if exclude_seen:
            for row, history in zip(block, histories[rows], strict=True):
                row[history[-HISTORY:]] = -1
        target_scores = np.take_along_axis(block, row_targets, axis=1)
        ties = (block == target_scores) & (np.arange(block.shape[1]) < row_targets)
        ranks.append(((block > target_scores) | ties).sum(axis=1))
    return np.concatenate(ranks)
