from itertools import product

import numpy as np
import pytest
from sklearn.cluster import KMeans

from ugt_composer.importing import kmeans as module
from ugt_composer.importing.kmeans import kmeans


def blobs(rows: int, centres: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    places = random.integers(-2000, 2000, (centres, 8))
    return np.rint(places[random.integers(0, centres, rows)] + random.normal(0, 300, (rows, 8)))


def cost(vectors: np.ndarray, labels: np.ndarray) -> float:
    groups = (vectors[labels == label] for label in np.unique(labels))
    return sum(float(np.square(group - group.mean(axis=0)).sum()) for group in groups)


def test_the_clusters_are_as_good_as_scikit_learns():
    vectors = blobs(1500, 12)
    labels, centres = kmeans(vectors, 12, seed=3)
    other = KMeans(12, n_init=4, random_state=3).fit_predict(vectors)
    assert cost(vectors, labels) <= 1.02 * cost(vectors, other)
    assert (centres == np.rint(centres)).all()


def test_the_best_of_all_partitions_is_found():
    vectors = np.array([[0, 0], [10, 0], [0, 12], [300, 310], [305, 300], [600, 0], [610, 9]], np.float64)
    best = min(cost(vectors, np.array(labels)) for labels in product(range(3), repeat=7) if len(set(labels)) == 3)
    assert cost(vectors, kmeans(vectors, 3, seed=0)[0]) == pytest.approx(best)


def test_each_vector_has_its_nearest_centre():
    vectors = blobs(400, 20, seed=1)
    labels, centres = kmeans(vectors, 6, seed=1)
    distances = np.square(vectors[:, None] - centres).sum(axis=2)
    assert (labels == distances.argmin(axis=1)).all()


def test_the_order_of_sums_does_not_matter():
    """The columns in another order: all sums of products have their terms in that order."""
    vectors = blobs(600, 9, seed=2)
    labels, centres = kmeans(vectors, 7, seed=5)
    columns = np.random.default_rng(0).permutation(vectors.shape[1])
    other_labels, other_centres = kmeans(np.asfortranarray(vectors[:, columns]), 7, seed=5)
    assert (labels == other_labels).all()
    assert (centres[:, columns] == other_centres).all()


def test_a_sample_of_many_vectors_is_enough(monkeypatch):
    vectors = blobs(3000, 5, seed=4)
    every = cost(vectors, kmeans(vectors, 5, seed=0)[0])
    monkeypatch.setattr(module, "MOST_VECTORS", 500)
    assert cost(vectors, kmeans(vectors, 5, seed=0)[0]) <= 1.05 * every


def test_fewer_different_vectors_than_centres():
    labels, centres = kmeans(np.repeat([[1.0, 2.0], [300.0, 4.0]], 5, axis=0), 4, seed=0)
    assert len(centres) == 4
    assert len(set(labels[:5].tolist())) == len(set(labels[5:].tolist())) == 1
    assert labels[0] != labels[5]
