"""Embeddings initialised from item vectors, compared with plain loops, NumPy and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from ugt_composer.model.embedding import EMBEDDING_STD, ItemEmbedding
from ugt_composer.model.item_init import fitted, start_from_vectors

SIZES, WIDTH, ITEMS = (9, 12, 40), 16, 30


def make(dimensions: int, shared: bool) -> tuple[ItemEmbedding, np.ndarray, np.ndarray]:
    random = np.random.default_rng(dimensions)
    l3 = 5 + (np.arange(ITEMS) % 7 if shared else np.arange(ITEMS))
    ids = np.stack([random.integers(5, 9, ITEMS), random.integers(5, 12, ITEMS), l3], axis=1)
    torch.manual_seed(0)
    return ItemEmbedding(SIZES, WIDTH), ids, random.standard_normal((ITEMS, dimensions)).astype(np.float32) + 3


@pytest.mark.parametrize("dimensions", [1, 5, WIDTH, 40])
def test_level_sums_equal_the_vectors_if_each_item_has_its_own_l3_id(dimensions):
    embedding, ids, vectors = make(dimensions, shared=False)
    start_from_vectors(embedding, ids, vectors, seed=1)
    sums = embedding(torch.from_numpy(ids)).detach().double().numpy()
    assert np.sqrt((sums**2).mean()) == pytest.approx(EMBEDDING_STD, rel=1e-5)
    wanted = (PCA(WIDTH).fit_transform(vectors) if dimensions > WIDTH else vectors - vectors.mean(0)).astype(float)
    products, expected = sums @ sums.T, wanted @ wanted.T
    assert products == pytest.approx(expected * (np.trace(products) / np.trace(expected)), abs=1e-7)


def test_each_id_gets_the_mean_of_what_the_levels_above_leave():
    embedding, ids, vectors = make(8, shared=True)
    before = [table.weight.detach().clone() for table in embedding.levels]
    start_from_vectors(embedding, ids, vectors, seed=1)
    left = fitted(torch.from_numpy(vectors), WIDTH, seed=1).numpy().copy()
    for level, table in enumerate(embedding.levels):
        weight, above = table.weight.detach().numpy(), left.copy()
        for code in range(SIZES[level]):
            rows = [row for row in range(ITEMS) if ids[row, level] == code]
            if not rows:
                assert (weight[code] == before[level][code].numpy()).all(), "ids of no item start at random"
                continue
            mean = sum(above[row] for row in rows) / len(rows)
            assert weight[code] == pytest.approx(mean, abs=1e-6)
            left[rows] = above[rows] - mean


def test_the_rotation_depends_on_the_seed():
    vectors = torch.randn(20, 4)
    assert torch.equal(fitted(vectors, WIDTH, 1), fitted(vectors, WIDTH, 1))
    assert not torch.allclose(fitted(vectors, WIDTH, 1), fitted(vectors, WIDTH, 2))
