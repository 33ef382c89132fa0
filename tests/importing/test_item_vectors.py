import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ugt_composer.errors import UserError
from ugt_composer.importing import item_vectors
from ugt_composer.importing.clustering import check_clusters, default_clusters, residual_codes
from ugt_composer.importing.item_vectors import cooccurrence_vectors, joined_vectors, text_vectors
from ugt_composer.importing.quality import quality, summary

TEXTS = pl.Series(["red nail polish", "pink nail polish", "blue nail polish", "skin oil", "body skin oil", None])


def length(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=1)


def test_similar_texts_are_near_and_no_text_is_nothing():
    vectors = text_vectors(TEXTS, 3, seed=1)
    assert vectors[0] @ vectors[1] > 0.9 > 0.5 > vectors[0] @ vectors[3]
    assert length(vectors) == pytest.approx([1, 1, 1, 1, 1, 0])


def test_texts_without_a_common_word_give_zero_vectors():
    assert (text_vectors(pl.Series(["a", "b", "c"]), 4, 0) == 0).all()


def test_items_chosen_together_are_near():
    user = np.repeat(np.arange(40), 6)
    item = np.concatenate([np.random.default_rng(u).permutation(6) + (6 if u % 2 else 0) for u in range(40)])
    vectors = cooccurrence_vectors(user, item, 13, 2, window=5, seed=0)
    assert (vectors[:6] @ vectors[:6].T).min() > 0.5
    assert abs(vectors[:6] @ vectors[6:12].T).max() < 0.2
    assert length(vectors)[12] == 0, "never seen"


@pytest.mark.parametrize("groups", [1, 4, 30])
def test_rounding_errors_do_not_change_vectors_even_where_singular_values_are_equal(groups):
    """Groups of the same form have the same singular values, so that their singular vectors are arbitrary."""
    random = np.random.default_rng(groups)
    block = random.random((120 // groups, 120 // groups)) * (random.random((120 // groups, 120 // groups)) < 0.5)
    matrix = sparse.block_diag([block + block.T] * groups).tocsr()
    noisy = matrix.copy()
    noisy.data *= 1 + random.standard_normal(len(noisy.data)) * 1e-15
    vectors = item_vectors._reduced(matrix, 20, 0)
    assert (vectors == item_vectors._reduced(noisy, 20, 0)).all()
    assert len(np.unique(vectors, axis=0)) > 1


def test_reduced_rows_are_as_similar_as_in_an_exact_decomposition():
    random = np.random.default_rng(0)
    matrix = random.random((60, 50)) * (random.random((60, 50)) < 0.3)
    left, values, _ = np.linalg.svd(matrix)
    wanted = left[:, :8] * np.sqrt(values[:8])
    wanted /= length(wanted)[:, None]
    vectors = item_vectors._reduced(sparse.csr_matrix(matrix), 8, 0)
    assert vectors @ vectors.T == pytest.approx(wanted @ wanted.T, abs=0.05)


def test_the_counts_are_those_of_a_loop(monkeypatch):
    user, item = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 1, 2])
    seen = {}
    monkeypatch.setattr(item_vectors, "_reduced", lambda matrix, *_: seen.update(made=matrix.toarray()))
    cooccurrence_vectors(user, item, 3, 2, window=2, seed=0)
    counts = np.zeros((3, 3))
    for i in range(len(user)):
        for j in range(i + 1, min(i + 3, len(user))):
            if user[i] == user[j]:
                counts[item[i], item[j]] += 1 / (j - i)
                counts[item[j], item[i]] += 1 / (j - i)
    total = counts.sum(axis=1)
    context = total**0.75 / (total**0.75).sum()
    with np.errstate(divide="ignore"):
        expected = np.maximum(np.log(counts / total[:, None] / context), 0)
    np.fill_diagonal(expected, 0)
    assert seen["made"] == pytest.approx(expected, abs=1e-6)


def test_a_missing_vector_is_taken_from_similar_items():
    texts = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    together = np.array([[0, 1], [1, 0], [0, 0]], np.float32)
    vectors = joined_vectors([texts, together], [0.5, 0.5], seed=0)
    assert vectors[2] @ vectors[0] > vectors[2] @ vectors[1]
    assert length(vectors) == pytest.approx([1, 1, 1])


def test_items_without_vectors_spread_over_the_others():
    texts = np.zeros((60, 3), np.float32)
    texts[:3] = np.eye(3)
    vectors = joined_vectors([texts], [1.0], seed=0)
    assert len(np.unique(vectors[3:], axis=0)) == 3
    assert joined_vectors([np.zeros((4, 1), np.float32)], [1.0], seed=0).std() > 0


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 40), st.integers(0, 5))
def test_clusters_are_within_bounds_and_the_same_for_a_seed(items, seed):
    vectors = np.random.default_rng(seed).standard_normal((items, 3)).astype(np.float32)
    codes = residual_codes(vectors, (4, 8), seed)
    assert codes.shape == (items, 2)
    assert (codes >= 0).all()
    assert (codes < [4, 8]).all()
    assert (codes == residual_codes(vectors, (4, 8), seed)).all()


def test_fewer_different_vectors_than_clusters():
    assert residual_codes(np.ones((9, 2), np.float32), (4, 8), 0).shape == (9, 2)


@pytest.mark.parametrize("items", [1, 2, 50, 12_101, 10**7])
def test_default_clusters_fit(items):
    check_clusters(default_clusters(items, (1024, 4096, 16384)), items, (1024, 4096, 16384), is_default=True)
    assert default_clusters(12_101, (1024, 4096, 16384)) == (64, 256)


def test_clusters_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="level 2: found 60, expected 1 to 59"):
        check_clusters((10, 60), 5, (64, 64, 64), is_default=False)
    with pytest.raises(UserError, match="room for 59 items, but there are 60"):
        check_clusters((1, 1), 60, (64, 64, 64), is_default=False)
    with pytest.raises(UserError, match=r"--codebook-sizes 6 6 6: room for 1 item, but there are 60"):
        check_clusters((1, 1), 60, (6, 6, 6), is_default=True)


def test_a_single_code_has_no_entropy_and_no_minus_sign():
    figures = quality(np.array([[5, 5, 5], [5, 5, 6]]), (8, 8, 8), {}, seed=0)
    assert "-0.00" not in summary(figures)
    assert "0.00 bits" in summary(figures)


def test_the_report_counts_collisions_use_and_neighbours():
    ids = np.array([[5, 5, 5], [5, 5, 5], [5, 6, 5], [6, 5, 5]])
    vectors = np.array([[1, 0], [1, 0.1], [0, 1], [0, 0]], np.float32)
    figures = quality(ids, (10, 10, 10), {"vectors": vectors, "nothing": np.zeros((4, 2))}, seed=0)
    assert figures["collisions"] == {"ids": 1, "items": 2}
    assert [level["used"] for level in figures["levels"]] == [2, 2, 1]
    assert figures["levels"][0]["entropy"] == pytest.approx(0.8113, abs=1e-4)  # of 3/4 and 1/4
    assert figures["prefixes"][1] == {"used": 3, "mean": pytest.approx(1.333), "most": 2}
    near = figures["neighbours"]["vectors"]
    assert (near["count"], near["share_l1"], near["random_l1"]) == (2, 1.0, 1.0)
    assert near["share_l1_l2"] == near["random_l1_l2"] == pytest.approx(1 / 3, abs=1e-4)
    assert figures["neighbours"]["nothing"] is None
    assert "2 items share 1 of them" in summary(figures)
