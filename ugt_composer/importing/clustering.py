"""Codes from item vectors: residual k-means (the residual quantisation of TIGER, without its autoencoder)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ugt_composer.errors import UserError
from ugt_composer.importing.exact import exponent_of, integers_of
from ugt_composer.importing.kmeans import kmeans, nearest
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


@dataclass(frozen=True)
class Quantiser:
    """The centres that codes come from; vectors that did not make the centres get the codes of the nearest ones.

    Attributes:
        exponent: of the power of two that vectors are multiplied by before they are rounded to integers.
        centres: per level, integers (clusters, d).
    """

    exponent: int
    centres: tuple[np.ndarray, ...]

    def codes(self, vectors: np.ndarray) -> np.ndarray:
        """int64 (n, levels) cluster numbers of (n, d) vectors, the same on every machine."""
        residual, codes = integers_of(vectors, self.exponent), []
        for centres in self.centres:
            codes.append(nearest(residual, centres))
            residual = residual - centres[codes[-1]]
        return np.stack(codes, axis=1)


def fit_quantiser(vectors: np.ndarray, clusters: Sequence[int], seed: int) -> tuple[Quantiser, np.ndarray]:
    """A quantiser of (n, d) vectors, and their codes, int64 (n, levels): each level clusters the residuals of the level
    above."""
    exponent = exponent_of(vectors)
    residual = integers_of(vectors, exponent)
    codes, levels = [], []
    for level, count in enumerate(clusters):
        labels, centres = kmeans(residual, min(count, len(vectors)), seed + level)
        residual = residual - centres[labels]
        codes.append(labels)
        levels.append(centres)
    return Quantiser(exponent, tuple(levels)), np.stack(codes, axis=1)
