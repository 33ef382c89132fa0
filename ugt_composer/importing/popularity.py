"""What recommending the same popular items to everybody scores: the least that a model has to beat."""

import numpy as np

K = 10


def popularity(trained: np.ndarray, targets: np.ndarray, items: int) -> dict[str, float]:
    """Recall and ndcg at 10 of the items most frequent in training.

    Args:
        trained: int (P,) items of the training interactions.
        targets: int (R,) the one item to predict of each held-out row.
        items: how many there are.
    """
    counts = np.bincount(trained, minlength=items)
    ranked = np.lexsort((np.arange(items), -counts))[:K]
    gain = np.zeros(items)
    gain[ranked] = 1 / np.log2(np.arange(2, len(ranked) + 2))
    scores = gain[targets]
    return {f"recall@{K}": round(float((scores > 0).mean()), 4), f"ndcg@{K}": round(float(scores.mean()), 4)}
