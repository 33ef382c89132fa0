"""The popularity baseline: the score of recommending the same popular items to every user."""

import numpy as np

K = 10


def popularity(trained: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Recall and ndcg at 10 of recommending the items that are most frequent in training.

    Args:
        trained: int (I,) how many training interactions each item has.
        targets: int (I,) how many held-out rows are to predict it; one at least.
    """
    ranked = np.lexsort((np.arange(len(trained)), -trained))[:K]
    hits, rows = targets[ranked], targets.sum()
    gains = 1 / np.log2(np.arange(2, len(ranked) + 2))
    return {f"recall@{K}": round(float(hits.sum() / rows), 4), f"ndcg@{K}": round(float(gains @ hits / rows), 4)}
