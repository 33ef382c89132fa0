"""Neighbours of added items against loops over all pairs of items."""

import numpy as np
import pytest

from ugt_composer.importing import new_neighbours
from ugt_composer.importing.new_neighbours import with_new_items

OLD, NEW, NEAREST = 7, 4, 3
ITEMS = OLD + NEW


@pytest.fixture
def vectors(monkeypatch):
    monkeypatch.setattr(new_neighbours, "NEAREST", NEAREST)
    return np.random.default_rng(0).standard_normal((ITEMS, 5)) * np.arange(1, ITEMS + 1)[:, None]


def counted() -> tuple[np.ndarray, np.ndarray]:
    """Each old item is followed by the next two, the last one by none."""
    neighbours = np.stack([np.arange(OLD) + 1, np.arange(OLD) + 2], axis=1) % OLD
    neighbours[-1] = -1
    return neighbours, np.where(neighbours >= 0, np.array([[0.5, 0.25]]), 0.0)


def dense(neighbours: np.ndarray, probabilities: np.ndarray, items: int) -> np.ndarray:
    table = np.zeros((items, items))
    for item, (columns, values) in enumerate(zip(neighbours, probabilities, strict=True)):
        for column, value in zip(columns, values, strict=True):
            if column >= 0:
                table[item, column] += value
    return table


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_new_items_are_neighbours_of_those_with_similar_vectors(vectors):
    neighbours, probabilities = with_new_items(*counted(), vectors)
    expected = np.zeros((ITEMS, ITEMS))
    expected[:OLD, :OLD] = dense(*counted(), OLD)
    for new in range(OLD, ITEMS):
        by_cosine = sorted(set(range(ITEMS)) - {new}, key=lambda item: -cosine(vectors[new], vectors[item]))
        for item in by_cosine[:NEAREST]:
            expected[new, item] = 1 / NEAREST
        for item in [item for item in by_cosine if item < OLD][:NEAREST]:
            expected[item, new] = 1 / NEAREST
    for item in range(OLD):
        expected[item] /= 1 + expected[item, OLD:].sum()
    np.testing.assert_allclose(dense(neighbours, probabilities, ITEMS), expected, atol=1e-6)
    assert (probabilities.sum(axis=1) <= 1 + 1e-6).all()
    assert (np.diff(probabilities, axis=1) <= 0).all()


def test_the_length_of_a_vector_does_not_matter(vectors):
    scaled = vectors * np.linspace(0.01, 100, ITEMS)[:, None]
    for one, other in zip(with_new_items(*counted(), vectors), with_new_items(*counted(), scaled), strict=True):
        np.testing.assert_array_equal(one, other)


def test_with_one_old_item_it_is_the_neighbour_of_a_single_new_one(vectors):
    neighbours, probabilities = with_new_items(np.full((1, 1), -1), np.zeros((1, 1)), vectors[:2])
    assert neighbours.tolist() == [[1], [0]]
    assert probabilities == pytest.approx(np.array([[0.25], [1 / NEAREST]]), abs=1e-6)


def test_a_new_item_of_which_nothing_is_known_changes_nothing(vectors):
    unknown, others = OLD + 1, np.delete(np.arange(ITEMS), OLD + 1)
    expected = dense(*with_new_items(*counted(), vectors[others]), ITEMS - 1)
    vectors[unknown] = 0
    found = dense(*with_new_items(*counted(), vectors), ITEMS)
    assert not found[unknown].any()
    assert not found[:, unknown].any()
    np.testing.assert_allclose(found[np.ix_(others, others)], expected, atol=1e-6)


def test_an_old_item_of_which_nothing_is_known_keeps_its_counted_neighbours(vectors):
    vectors[0] = 0
    found = dense(*with_new_items(*counted(), vectors), ITEMS)
    np.testing.assert_allclose(found[0, :OLD], dense(*counted(), OLD)[0])
    assert not found[0, OLD:].any()
    assert not found[OLD:, 0].any()
