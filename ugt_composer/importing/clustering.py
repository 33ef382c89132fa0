"""Codes from item vectors: residual k-means (the residual quantisation of TIGER, without its autoencoder)."""

import math
from collections.abc import Sequence

import numpy as np

from ugt_composer.errors import UserError
from ugt_composer.importing.exact import integers_of
from ugt_composer.importing.kmeans import kmeans
from ugt_composer.importing.levels import capacities
from ugt_composer.vocabulary import NUM_SPECIAL_IDS


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
    residual = integers_of(vectors)
    codes = []
    for level, count in enumerate(clusters):
        labels, centres = kmeans(residual, min(count, len(vectors)), seed + level)
        residual = residual - centres[labels]
        codes.append(labels)
    return np.stack(codes, axis=1)
