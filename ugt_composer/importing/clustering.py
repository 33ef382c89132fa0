"""Codes from item vectors: residual k-means (the residual quantisation of TIGER, without its autoencoder)."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning

from ugt_composer.errors import UserError
from ugt_composer.importing.levels import capacities
from ugt_composer.vocabulary import NUM_SPECIAL_IDS

FULL_KMEANS = 50_000  # items up to which each k-means step uses all of them; above, minibatches
RESTARTS = 4
MINIBATCH = 16_384


def default_clusters(items: int, codebook_sizes: Sequence[int]) -> tuple[int, int]:
    """A power of two near √items / 2, and four times that: 64 and 256 for 12,000 items."""
    first = 2 ** max(round(math.log2(math.sqrt(items) / 2)), 1)
    most = capacities(codebook_sizes)
    return min(first, most[0]), min(4 * first, most[1])


def check_clusters(clusters: Sequence[int], items: int, codebook_sizes: Sequence[int], is_default: bool) -> None:
    """Raises UserError if the clusters do not fit into the codebooks, or the items not into the clusters.

    Args:
        is_default: the clusters are those of `default_clusters`, not the user's.
    """
    *_, instances = level_capacities = capacities(codebook_sizes)
    for level, (count, most) in enumerate(zip(clusters, level_capacities, strict=False), start=1):
        if not 1 <= count <= most:
            raise UserError(
                f"--clusters: level {level}: found {count}, expected 1 to {most}, because --codebook-sizes gives the "
                f"level {most + NUM_SPECIAL_IDS} ids and {NUM_SPECIAL_IDS} of them are special"
            )
    capacity = math.prod(clusters) * instances
    if items > capacity:
        numbers = codebook_sizes if is_default else clusters
        option = "--codebook-sizes" if is_default else "--clusters"
        raise UserError(
            f"{option} {' '.join(map(str, numbers))}: room for {capacity:,} item{'s' * (capacity != 1)}, but there are "
            f"{items:,}; give larger numbers"
        )


def residual_codes(vectors: np.ndarray, clusters: Sequence[int], seed: int) -> np.ndarray:
    """int64 (n, levels) cluster numbers of (n, d) vectors: each level clusters the residuals of the level above."""
    residual = vectors.astype(np.float32)
    codes = []
    for level, count in enumerate(clusters):
        labels, centres = _kmeans(residual, min(count, len(vectors)), seed + level)
        residual = residual - centres[labels]
        codes.append(labels)
    return np.stack(codes, axis=1).astype(np.int64)


def _kmeans(vectors: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and centres (count, d)."""
    if len(vectors) <= FULL_KMEANS:
        model = KMeans(count, n_init=RESTARTS, random_state=seed)
    else:
        model = MiniBatchKMeans(count, batch_size=MINIBATCH, n_init=RESTARTS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # raised for fewer distinct vectors than clusters
        labels = model.fit_predict(vectors)
    return labels, model.cluster_centers_
