"""Counted neighbours against loops over pairs of interactions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt_composer.importing import neighbours
from ugt_composer.importing.neighbours import NEXT_FRACTION, WINDOW, neighbours_of
from ugt_composer.importing.pair_counts import NearCounts, count_near

ITEMS = 6
LISTS = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=8), min_size=1, max_size=6)


def brute_force(users: list[list[int]]) -> np.ndarray:
    """The probabilities (n, n) of all items after each item, by loops over all pairs of a user's interactions."""
    following, near = np.zeros((ITEMS, ITEMS)), np.zeros((ITEMS, ITEMS))
    for items in users:
        for first, one in enumerate(items):
            for second in range(first + 1, min(len(items), first + WINDOW + 1)):
                other = items[second]
                if one != other:
                    following[one, other] += second == first + 1
                    near[one, other] += 1
                    near[other, one] += 1
    count = [max(1, sum(items.count(item) for items in users)) for item in range(ITEMS)]
    result = np.zeros((ITEMS, ITEMS))
    for one in range(ITEMS):
        cosines = [near[one, other] / math.sqrt(count[one] * count[other]) for other in range(ITEMS)]
        for other in range(ITEMS):
            result[one, other] = NEXT_FRACTION * following[one, other] / (1 + following[one].sum())
            if sum(cosines):
                result[one, other] += (1 - NEXT_FRACTION) * cosines[other] / sum(cosines)
    return result


def flat(users: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = [len(items) for items in users]
    return np.repeat(np.arange(len(users)), lengths), np.array([item for items in users for item in items], np.int64)


def counted(users: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Of users in two partitions."""
    halves = [flat(half) for half in (users[: len(users) // 2], users[len(users) // 2 :])]
    near = [count_near(user, item, ITEMS, WINDOW) for user, item in halves]
    pieces = [first + second for first, second in zip(near[0].pieces(), near[1].pieces(), strict=True)]
    return neighbours_of(NearCounts.joined(pieces))


@settings(max_examples=40, deadline=None)
@given(LISTS)
def test_probabilities_are_those_of_loops_over_pairs(users):
    columns, values = counted(users)
    found = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        for column, value in zip(columns[item], values[item], strict=True):
            if column >= 0:
                found[item, column] = value
    np.testing.assert_allclose(found, brute_force(users), atol=1e-6)
    assert (values.sum(axis=1) <= 1 + 1e-6).all()
    assert (np.diff(values, axis=1) <= 0).all()


def test_only_the_most_probable_are_kept(monkeypatch):
    users = [[0, 1], [0, 1], [0, 2], [0, 2], [0, 2], [0, 3]]
    monkeypatch.setattr(neighbours, "MOST", 2)
    columns, values = counted(users)
    assert columns.shape == values.shape == (ITEMS, 2)
    expected = brute_force(users)
    for item in range(ITEMS):
        best = sorted(np.flatnonzero(expected[item]), key=lambda other: (-expected[item, other], other))[:2]
        assert columns[item].tolist() == [*best, *[-1] * (2 - len(best))]


@pytest.mark.parametrize("users", [[[]], [[3]]])
def test_without_pairs_there_are_no_neighbours(users):
    columns, values = counted(users)
    assert (columns == -1).all()
    assert (values == 0).all()
