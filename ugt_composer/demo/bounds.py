"""Bounds for the demo: the best possible prediction of the items and of the preferences.

Legend: N rows (one target each), V items, Z user types, K recommendations, M columns of `Offers`.
"""

import numpy as np
from scipy.special import softmax

from ugt_composer.demo.process import DemoProcess, Offers

K = 10


def top_items(scores: np.ndarray) -> np.ndarray:
    """The K items with the highest scores, best first, ties to the lower item number: (N, V) -> (N, K)."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :K]


def realised(recommended: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Recall and ndcg on the drawn targets: recommended (N, K), targets (N,)."""
    return _ranking_facts((recommended == targets[:, None]).astype(float))


def expected(recommended: np.ndarray, law: np.ndarray) -> dict[str, float]:
    """Expected recall and ndcg: recommended (N, K), law (N, V) the probability of each target."""
    return _ranking_facts(np.take_along_axis(law, recommended, axis=1))


def _ranking_facts(gains: np.ndarray) -> dict[str, float]:
    """Gains (N, K): the probability that the target is the item at this rank. Discount 1 / log2(rank + 1)."""
    k = gains.shape[1]
    discounts = 1 / np.log2(np.arange(k) + 2)
    return {
        f"recall@{k}": _rounded(gains.sum(axis=1).mean()),
        f"ndcg@{k}": _rounded((gains * discounts).sum(axis=1).mean()),
    }


def choice_probabilities(process: DemoProcess, posterior: np.ndarray, offers: Offers) -> np.ndarray:
    """P(item is the chosen one | history of the customer): posterior (N, Z) -> (N, M), 0 where no item is shown."""
    utility = np.where(offers.shown, process.utility[:, offers.items], -np.inf)  # (Z, N, M)
    return np.einsum("nz,znm->nm", posterior, softmax(utility, axis=2))


def pair_accuracy(scores: np.ndarray, offers: Offers) -> float:
    """Fraction of (chosen, rejected) pairs whose chosen item scores higher: scores (N, M), the chosen one first."""
    right = (scores[:, :1] > scores[:, 1:])[offers.shown[:, 1:]]
    return _rounded(right.mean())


def best_pair_accuracy(probabilities: np.ndarray, offers: Offers) -> float:
    """The highest possible expected pair accuracy, given the probabilities (N, M) of being chosen.

    The best predictor of items i and j of an offer prefers the one that is more likely to be chosen. One of them is
    chosen with probability p_i + p_j, and the predictor is right with probability max(p_i, p_j). The p_i + p_j of all
    pairs of n shown items sum to n - 1.
    """
    first, second = np.triu_indices(probabilities.shape[1], k=1)
    both = offers.shown[:, first] & offers.shown[:, second]
    right = np.where(both, np.maximum(probabilities[:, first], probabilities[:, second]), 0).sum()
    return _rounded(right / offers.shown[:, 1:].sum())


def _rounded(value: float) -> float:
    return round(float(value), 4)
