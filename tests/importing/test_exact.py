import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ugt_composer.importing.exact import LARGEST, UNIT, integers_of, rounded, unit_steps


@given(st.integers(0, 10), st.integers(-60, 60))
def test_integers_are_the_vectors_up_to_a_power_of_two(seed, exponent):
    vectors = np.random.default_rng(seed).standard_normal((9, 4)) * 2.0**exponent
    integers = integers_of(vectors)
    assert (integers == np.rint(integers)).all()
    scale = integers.ravel() @ vectors.ravel() / np.square(vectors).sum()
    assert np.log2(scale) == pytest.approx(round(np.log2(scale)), abs=0.01)
    assert integers / scale == pytest.approx(vectors, abs=0.01 * 2.0**exponent)
    assert (integers_of(vectors * 4) == integers).all()


def test_outliers_are_clipped_and_zeros_are_kept():
    vectors = np.array([[1.0, 0.0], [1e9, -1e9], [1.0, 0.0], [1.0, 0.0]])
    assert integers_of(vectors).tolist() == [[512, 0], [LARGEST, -LARGEST], [512, 0], [512, 0]]
    assert not integers_of(np.zeros((3, 2))).any()


def test_small_differences_disappear_and_lengths_stay():
    random = np.random.default_rng(0)
    vectors = random.standard_normal((50, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[7] = 0
    noise = random.standard_normal(vectors.shape) * 1e-13
    noise[7] = 0
    assert (rounded(vectors) == rounded(vectors + noise)).all()
    assert rounded(vectors) == pytest.approx(vectors, abs=1.5 / UNIT)
    assert np.linalg.norm(rounded(vectors), axis=1) == pytest.approx([1.0] * 7 + [0.0] + [1.0] * 42)
    assert (unit_steps(vectors) == np.rint(vectors * UNIT)).all()
