import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ugt_composer.importing.k_core import k_core

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
    kept, rounds = k_core(user, item, k)
    assert [pair for pair, keep in zip(interactions, kept, strict=True) if keep] == by_hand(interactions, k)
    assert (rounds == 0) == bool(kept.all())


def test_a_chain_is_removed_to_its_end():
    # Each user shares an item with the next one, and only the first item is rare.
    user, item = np.repeat(np.arange(9), 2), np.repeat(np.arange(10), 2)[1:-1]
    kept, rounds = k_core(user, item, 2)
    assert not kept.any()
    assert rounds > 4
