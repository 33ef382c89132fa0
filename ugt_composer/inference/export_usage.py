"""Scores candidates for users with encoder.pt2 and scorer.pt2. Needs only torch, numpy and this folder."""

from pathlib import Path

import numpy as np
import torch

MAX_HISTORY = None  # items of a history that the model reads, the most recent ones; None: all
FOLDER = Path(__file__).resolve().parent
encoder, scorer = (torch.export.load(FOLDER / f"{name}.pt2").module() for name in ("encoder", "scorer"))


def score(histories, candidates):
    """Histories of (l1, l2, l3), oldest first, and N candidates per history → log-probabilities (users, N)."""
    if MAX_HISTORY is not None:
        histories = [history[-MAX_HISTORY:] for history in histories]
    length = 1 + max(map(len, histories))
    ids = np.zeros((len(histories), length, 3), np.int64)
    ids[:, 0] = 1  # every history begins with the user's token
    mask = np.arange(length) < np.array([[1 + len(history)] for history in histories])
    for row, history in zip(ids, histories):  # noqa: B905 - any Python 3
        row[1 : 1 + len(history)] = np.reshape(history, (-1, 3))
    positions = np.arange(length) * mask
    token_types = np.minimum(np.arange(length), 1) + 0 * positions  # 0 user, 1 item
    state, _user_vector = encoder(*map(torch.from_numpy, (ids, positions, token_types, mask)))
    return scorer(state, torch.as_tensor(candidates)).numpy()


if __name__ == "__main__":
    print(score([[(5, 6, 7), (5, 6, 8)], [(6, 7, 9)]], [[(5, 6, 9), (6, 7, 8)]] * 2))
