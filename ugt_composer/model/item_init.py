"""Initialises item embeddings from item vectors, such as those made from texts or from co-occurrence.

n items, d dimensions of the vectors, D width of the model.
"""

import numpy as np
import torch
from torch import Tensor

from ugt_composer.model.embedding import EMBEDDING_STD, ItemEmbedding


@torch.no_grad()
def start_from_vectors(embedding: ItemEmbedding, ids: np.ndarray, vectors: np.ndarray, seed: int) -> None:
    """Sets the level embeddings so that their sums are as near to the items' vectors as the ids allow.

    Level by level, the embedding of an id is the mean, over the items with this id, of the residual that the levels
    above leave: the codewords of a residual quantiser whose codes are given. If no two items share an L3 id, the sums
    equal the vectors. Ids that no item has keep their random initialisation.

    Args:
        ids: int (n, 3) semantic IDs.
        vectors: (n, d), not all the same.
        seed: seed of the rotation that spreads the vectors over the width.
    """
    residual = fitted(torch.from_numpy(vectors), embedding.output_weight(0).shape[1], seed)
    for level, table in enumerate(embedding.levels):
        level_ids = torch.from_numpy(ids[:, level])
        counts = torch.bincount(level_ids, minlength=table.num_embeddings)
        means = torch.zeros(table.weight.shape).index_add_(0, level_ids, residual) / counts.clamp(min=1)[:, None]
        table.weight.copy_(torch.where(counts[:, None] > 0, means, table.weight))
        residual = residual - means[level_ids]


def fitted(vectors: Tensor, width: int, seed: int) -> Tensor:
    """float32 (n, d) → (n, D) with mean 0 and the standard deviation of randomly initialised embeddings.

    Vectors of more than D dimensions are reduced to their principal components. All are rotated at random, so that
    every coordinate is used equally; the rotation keeps inner products up to a scale factor.
    """
    centred = vectors - vectors.mean(dim=0)
    if centred.shape[1] > width:
        components = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -width:]
        centred = centred @ components
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
    rotation = torch.linalg.qr(noise).Q[: centred.shape[1]]
    rotated = centred @ rotation
    return rotated * (EMBEDDING_STD / rotated.square().mean().sqrt())
