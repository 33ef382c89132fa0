"""The popularity baseline: the score of recommending the same popular items to every user."""

import numpy as np

K = 10


def popularity(trained: np.ndarray, targets: np.ndarray, items: int) -> dict[str, float]:
    """Recall and ndcg at 10 of recommending the items that are most frequent in training.

    Args:
        trained: int (P,) items of the training interactions.
        targets: int (R,) the item to predict in each held-out row.
        items: number of items.
    """
    counts = np.bincount(trained, minlength=items)
    ranked = np.lexsort((np.arange(items), -counts))[:K]
    gain = np.zeros(items)
    gain[ranked] = 1 / np.log2(np.arange(2, len(ranked) + 2))
    scores = gain[targets]
    return {f"recall@{K}": round(float((scores > 0).mean()), 4), f"ndcg@{K}": round(float(scores.mean()), 4)}
