"""Skipped draws leave NumPy's generator as draws that were made do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt_composer.data.order.draws import can_skip, generator_at, skip_numbers, skip_shuffle, state_of


def test_the_installed_numpy_draws_as_expected():
    assert can_skip()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 70_000])
@pytest.mark.parametrize("has_half", [False, True])
def test_a_skipped_shuffle(size, has_half):
    generator = np.random.default_rng(5)
    if has_half:
        generator.integers(0, 10)
    skipped = generator_at(state_of(generator))
    generator.shuffle(np.arange(size))
    skip_shuffle(skipped, size)
    assert state_of(skipped) == state_of(generator)
    assert skipped.integers(0, 1000) == generator.integers(0, 1000)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.integers(0, 50),
    st.booleans(),
    st.one_of(st.integers(1, 10), st.integers(1, 1 << 32), st.just(3 << 30)),
    st.lists(st.integers(0, 300), max_size=40),
)
def test_skipped_numbers_and_words(seed, has_half, below, words):
    generator = np.random.default_rng(seed)
    if has_half:
        generator.integers(0, 10)
    state = state_of(generator)
    for count in words:
        generator.integers(7, 7 + below)
        generator.uniform(-2.5, 3.0, count)
    assert skip_numbers(state, below, np.array(words, np.int64)) == state_of(generator)
