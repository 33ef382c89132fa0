import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from tests.metrics.ranked_cases import CATALOGUE, DISTINCT_ROWS, WIDTH
from ugt_composer.metrics.ranking import coverage, diversity, gini, hit_rate, mrr, ndcg_at_k, recall_at_k

A, B, C, D, E = (5, 5, 5), (5, 5, 6), (5, 6, 5), (6, 5, 5), (7, 5, 5)


def test_one_relevant_item_a_row():
    predictions, truth = [[A, B, C], [B, C], []], [B, D, A]
    assert recall_at_k(predictions, truth, 1) == 0
    assert recall_at_k(predictions, truth, 2) == hit_rate(predictions, truth, k=2) == pytest.approx(1 / 3)
    assert ndcg_at_k(predictions, truth, 2) == pytest.approx(1 / math.log2(3) / 3)
    assert mrr(predictions, truth) == pytest.approx(1 / 2 / 3)


def test_several_relevant_items_a_row():
    predictions, truth = [[A, D, B], [D, A, B]], [[A, B, C], [A, A]]
    assert recall_at_k(predictions, truth) == pytest.approx((2 / 3 + 1) / 2)
    assert recall_at_k(predictions, truth, 1) == pytest.approx((1 / 3 + 0) / 2)
    assert hit_rate(predictions, truth, 1) == 0.5
    three = 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg_at_k(predictions, truth) == pytest.approx(((1 + 1 / 2) / three + 1 / math.log2(3)) / 2)
    assert ndcg_at_k(predictions, truth, 1) == pytest.approx((1 + 0) / 2)  # the ideal list is cut at k too
    assert mrr(predictions, truth) == pytest.approx((1 + 1 / 2) / 2)


def test_a_repeated_item_counts_once_at_its_first_position():
    assert recall_at_k([[A, A, B]], [B], 2) == 1
    assert ndcg_at_k([[A, A, B]], [[A, B]], 2) == 1
    assert diversity([[A, A, D]], k=2) == 1
    assert gini([[A, A, B]], 2) == 0


def test_lists_numpy_rows_and_tuples_do_equally():
    assert recall_at_k([[list(A), list(B)]], [list(B)]) == 1
    assert recall_at_k(np.array([[A, B]]), np.array([B])) == 1
    assert recall_at_k(np.array([[A, B]]), np.array([[B, C]])) == 0.5
    assert recall_at_k(((A, B),), ((B, C),)) == 0.5


def test_coverage_is_over_a_number_of_items_or_over_the_items():
    predictions = [[A, B, C], [B, D]]
    assert coverage(predictions, 10, k=10) == 0.4
    assert coverage(predictions, 10, k=1) == 0.2
    assert coverage(predictions, [A, B, E, E]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="4 distinct items are recommended from a catalogue of 3"):
        coverage(predictions, 3)


def test_diversity_is_the_share_of_distinct_l1_in_what_is_there():
    assert diversity([[A, B, D], [A, D, E], []], k=3) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert diversity([[A, B, D]], k=1) == 1


def test_gini_in_closed_form():
    n = 8
    items = CATALOGUE[:n]
    assert gini([[item] for item in items], n) == 0
    assert gini([[items[0]]] * 5, n) == pytest.approx(1 - 1 / n)
    assert gini([[]], n) == 0
    # Item j exposed j times: the mean absolute difference of 1 .. n is (n² - 1) / 3n, which is 2 · mean · gini.
    assert gini([[item] for j, item in enumerate(items, 1) for _ in range(j)], n) == pytest.approx((n - 1) / (3 * n))


@given(DISTINCT_ROWS, st.integers(1, WIDTH))
@settings(max_examples=60, deadline=None)
def test_gini_is_half_the_relative_mean_difference(rows, k):
    lists = [predicted for predicted, _ in rows]
    counts = np.array([sum(item in items[:k] for items in lists) for item in CATALOGUE])
    expected = np.abs(counts[:, None] - counts).mean() / (2 * counts.mean()) if counts.any() else 0
    assert gini(lists, CATALOGUE, k) == pytest.approx(expected)
    assert gini(lists, len(CATALOGUE), k) == pytest.approx(expected)


@given(DISTINCT_ROWS, st.integers(1, WIDTH))
@settings(max_examples=60, deadline=None)
def test_other_libraries_agree(rows, k):
    predictions, truth = [row[0] for row in rows], [row[1] for row in rows]
    every = {"recall": [], "ndcg": [], "sklearn": [], "hit": [], "mrr": []}
    for predicted, relevant in rows:
        # Items of the catalogue that are not predicted come last; a zero gain after k changes nothing.
        ranked = predicted + [item for item in CATALOGUE if item not in predicted]
        gains = torch.tensor([item in relevant for item in ranked])
        listed = min(k, len(predicted))
        scores = torch.arange(len(ranked), 0, -1).float()
        seen = gains & (torch.arange(len(ranked)) < listed)
        every["recall"].append((seen.sum() / gains.sum()).item())
        if listed == k:
            assert every["recall"][-1] == pytest.approx(retrieval_recall(scores, gains, top_k=k).item())
        # The same ideal list, but no gain for what is not listed: unlisted relevant items move to the very end.
        order = [i for i in range(len(ranked)) if i < listed or not gains[i]]
        order += [i for i in range(len(ranked)) if i >= listed and gains[i]]
        every["ndcg"].append(retrieval_normalized_dcg(scores, gains[order].int(), top_k=k).item())
        every["hit"].append(retrieval_hit_rate(scores, seen, top_k=k).item())
        whole = gains & (torch.arange(len(ranked)) < len(predicted))
        every["mrr"].append(retrieval_reciprocal_rank(scores, whole).item())
        every["sklearn"].append(ndcg_score([gains[order].int().tolist()], [scores.tolist()], k=k))
    assert recall_at_k(predictions, truth, k) == pytest.approx(np.mean(every["recall"]), abs=1e-6)
    assert ndcg_at_k(predictions, truth, k) == pytest.approx(np.mean(every["ndcg"]), abs=1e-6)
    assert ndcg_at_k(predictions, truth, k) == pytest.approx(np.mean(every["sklearn"]), abs=1e-6)
    assert hit_rate(predictions, truth, k) == pytest.approx(np.mean(every["hit"]), abs=1e-6)
    assert mrr(predictions, truth) == pytest.approx(np.mean(every["mrr"]), abs=1e-6)


@pytest.mark.parametrize(
    ("predictions", "truth", "message"),
    [
        ([[A], [B, (5, 5)]], [A, B], r"predictions\[1\]\[1\] is \(5, 5\), expected three integers"),
        ([[A], [B, (5, 5, 1.5)]], [A, B], r"predictions\[1\]\[1\] is"),
        ([A], [A], r"predictions\[0\]\[0\] is 5, expected three integers"),
        ([[A], 7], [A, B], r"predictions\[1\] is 7, expected a list"),
        ([["abc"]], [A], r"predictions\[0\]\[0\] is 'abc'"),
        ([[A], [B]], [A, (5, 5)], r"ground_truth\[1\] is \(5, 5\), expected three integers"),
        ([[A], [B]], [A, [A, (5, 5)]], r"ground_truth\[1\]\[1\] is"),
        ([[A], [B]], [A, []], r"ground_truth\[1\] is empty, expected at least one relevant item"),
        ([[A], [B]], [A, None], r"ground_truth\[1\] is None"),
        ([[A], [B]], [A], "predictions for 2 rows and ground truth for 1"),
        ([], [], "there are no predictions to measure"),
    ],
)
def test_malformed_input_is_named_with_its_position(predictions, truth, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(predictions, truth)


@pytest.mark.parametrize("k", [0, -1, 2.5, True])
def test_k_is_a_positive_integer(k):
    for metric in (lambda: ndcg_at_k([[A]], [A], k), lambda: diversity([[A]], k), lambda: gini([[A]], 3, k)):
        with pytest.raises(ValueError, match="expected an integer of 1 or more"):
            metric()
