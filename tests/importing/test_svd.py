import numpy as np
import pytest
from scipy import sparse

from ugt_composer.importing.svd import Reduction


def length(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=1)


@pytest.mark.parametrize("groups", [1, 4, 30])
def test_rounding_errors_do_not_change_vectors_even_where_singular_values_are_equal(groups):
    """Groups of the same form have the same singular values, so that their singular vectors are arbitrary."""
    random = np.random.default_rng(groups)
    block = random.random((120 // groups, 120 // groups)) * (random.random((120 // groups, 120 // groups)) < 0.5)
    matrix = sparse.block_diag([block + block.T] * groups).tocsr()
    noisy = matrix.copy()
    noisy.data *= 1 + random.standard_normal(len(noisy.data)) * 1e-15
    vectors = Reduction.of(matrix, 20, 0).vectors
    assert (vectors == Reduction.of(noisy, 20, 0).vectors).all()
    assert len(np.unique(vectors, axis=0)) > 1


def test_reduced_rows_are_as_similar_as_in_an_exact_decomposition():
    random = np.random.default_rng(0)
    matrix = random.random((60, 50)) * (random.random((60, 50)) < 0.3)
    left, values, _ = np.linalg.svd(matrix)
    wanted = left[:, :8] * np.sqrt(values[:8])
    wanted /= length(wanted)[:, None]
    vectors = Reduction.of(sparse.csr_matrix(matrix), 8, 0).vectors
    assert vectors @ vectors.T == pytest.approx(wanted @ wanted.T, abs=0.05)


def test_a_row_times_the_columns_has_the_direction_of_its_vector():
    random = np.random.default_rng(0)
    matrix = random.standard_normal((90, 6)) @ random.standard_normal((6, 40))
    reduction = Reduction.of(sparse.csr_matrix(matrix), 6, 0)
    made = matrix @ reduction.columns
    assert (made / length(made)[:, None] * reduction.vectors).sum(axis=1) == pytest.approx(np.ones(90), abs=1e-4)
