"""Item embeddings that start from vectors of the items, such as of their texts or of what was chosen together.

n items, d dimensions of the vectors, D width of the model.
"""

import numpy as np
import torch
from torch import Tensor

from ugt_composer.model.embedding import EMBEDDING_STD, ItemEmbedding


@torch.no_grad()
def start_from_vectors(embedding: ItemEmbedding, ids: np.ndarray, vectors: np.ndarray, seed: int) -> None:
    """Sets the level embeddings so that their sums are as near to the items' vectors as their ids allow.

    Level by level, an id gets the mean of what the levels above it leave of the vectors of its items: the codewords of
    a residual quantiser whose codes are given. Where L3 ids are not shared, the sums are the vectors themselves. Ids
    that no item has keep their random start.

    Args:
        ids: int (n, 3) semantic ids.
        vectors: (n, d), not all the same.
        seed: of the rotation that spreads the vectors over the width.
    """
    left = fitted(torch.from_numpy(vectors), embedding.output_weight(0).shape[1], seed)
    for level, table in enumerate(embedding.levels):
        own = torch.from_numpy(ids[:, level])
        counts = torch.bincount(own, minlength=table.num_embeddings)
        means = torch.zeros(table.weight.shape).index_add_(0, own, left) / counts.clamp(min=1)[:, None]
        table.weight.copy_(torch.where(counts[:, None] > 0, means, table.weight))
        left = left - means[own]


def fitted(vectors: Tensor, width: int, seed: int) -> Tensor:
    """float32 (n, d) → (n, D) around 0, with the spread of embeddings that start at random.

    More dimensions than the width are reduced to their principal components; fewer are rotated into it, so that
    every coordinate has its share. Inner products are kept but for the scale.
    """
    centred = vectors - vectors.mean(dim=0)
    if centred.shape[1] > width:
        components = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -width:]
        centred = centred @ components
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
    rotation = torch.linalg.qr(noise).Q[: centred.shape[1]]
    rotated = centred @ rotation
    return rotated * (EMBEDDING_STD / rotated.square().mean().sqrt())
