import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ugt_composer.importing.k_core import k_core
from ugt_composer.importing.partitions import InMemory

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=40)


def by_hand(left: list[tuple[int, int]], k: int) -> list[tuple[int, int]]:
    """Removes one rare user or item at a time, in any order."""
    for side in (0, 1):
        for name in {pair[side] for pair in left}:
            if sum(pair[side] == name for pair in left) < k:
                return by_hand([pair for pair in left if pair[side] != name], k)
    return left


@given(pairs, st.integers(1, 4))
def test_the_core_equals_removing_one_user_or_item_at_a_time(interactions, k):
    user, item = np.array(interactions, np.int32).reshape(-1, 2).T
    halves = (user % 2 == 0, user % 2 == 1)  # all interactions of a user are in one
    core = k_core(InMemory(*((user[half], item[half]) for half in halves)), 7, k)
    expected = by_hand(interactions, k)
    assert core.item_counts.tolist() == [sum(pair[1] == item for pair in expected) for item in range(7)]
    assert (core.first, core.left) == (len(interactions), len(expected))
    assert (core.rounds == 0) == (core.left == core.first)


def test_a_chain_is_removed_to_its_end():
    # Each user shares an item with the next one, and only the first item is rare.
    user, item = np.repeat(np.arange(9), 2), np.repeat(np.arange(10), 2)[1:-1]
    core = k_core(InMemory((user, item)), 10, 2)
    assert core.left == 0
    assert core.rounds > 4
