import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt_composer.errors import UserError
from ugt_composer.importing.clustering import check_clusters, default_clusters, fit_quantiser
from ugt_composer.importing.item_vectors import cooccurrence_vectors, joined_vectors
from ugt_composer.importing.pair_counts import count_pairs
from ugt_composer.importing.quality import quality, summary
from ugt_composer.importing.svd import Reduction


def length(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=1)


def test_items_chosen_together_are_near():
    user = np.repeat(np.arange(40), 6)
    item = np.concatenate([np.random.default_rng(u).permutation(6) + (6 if u % 2 else 0) for u in range(40)])
    vectors = cooccurrence_vectors(count_pairs(user, item, 13, 5), 2, seed=0)
    assert (vectors[:6] @ vectors[:6].T).min() > 0.5
    assert abs(vectors[:6] @ vectors[6:12].T).max() < 0.2
    assert length(vectors)[12] == 0, "never seen"


def test_the_counts_are_those_of_a_loop(monkeypatch):
    user, item = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 1, 2])
    seen = {}

    def of(matrix, dimensions, seed):
        seen["made"] = matrix.toarray()
        return Reduction(matrix.toarray(), np.eye(3))

    monkeypatch.setattr(Reduction, "of", of)
    cooccurrence_vectors(count_pairs(user, item, 3, 2), 2, seed=0)
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
    quantiser, codes = fit_quantiser(vectors, (4, 8), seed)
    assert codes.shape == (items, 2)
    assert (codes >= 0).all()
    assert (codes < [4, 8]).all()
    assert (codes == fit_quantiser(vectors, (4, 8), seed)[1]).all()
    assert (codes == quantiser.codes(vectors)).all()


def test_the_codes_of_new_vectors_are_the_nearest_centres_level_by_level():
    random = np.random.default_rng(0)
    quantiser, _ = fit_quantiser(random.standard_normal((200, 4)).astype(np.float32), (5, 7), 0)
    new = random.standard_normal((50, 4)).astype(np.float32)
    residual, wanted = np.rint(new * 2.0**quantiser.exponent), []
    for centres in quantiser.centres:
        nearest = [((row - centres) ** 2).sum(axis=1).argmin() for row in residual]
        residual = residual - centres[nearest]
        wanted.append(nearest)
    assert (quantiser.codes(new) == np.array(wanted).T).all()


def test_fewer_different_vectors_than_clusters():
    assert fit_quantiser(np.ones((9, 2), np.float32), (4, 8), 0)[1].shape == (9, 2)


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
