import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics.ranked_cases import CATALOGUE, REPEATING_ROWS, WIDTH
from ugt_composer.metrics import ranking
from ugt_composer.metrics.calculator import MetricsCalculator

A, B, C, D = (5, 5, 5), (5, 5, 6), (5, 6, 5), (6, 5, 5)


@given(REPEATING_ROWS, st.integers(1, WIDTH + 2), st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_batches_give_what_the_functions_give(rows, k, cut):
    calculator = MetricsCalculator(catalogue_size=len(CATALOGUE))
    for part in (rows[:cut], rows[cut:]):
        calculator.add_batch([row[0] for row in part], [row[1] for row in part])
    predictions, truth = [row[0] for row in rows], [row[1] for row in rows]

    def hit_rate_of(levels):
        best = [
            [item for item in list(dict.fromkeys(predicted))[:k] if item[:levels] in {t[:levels] for t in relevant}]
            for predicted, relevant in rows
        ]
        return sum(map(bool, best)) / len(rows)

    expected = {
        f"recall@{k}": ranking.recall_at_k(predictions, truth, k),
        f"ndcg@{k}": ranking.ndcg_at_k(predictions, truth, k),
        f"hit_rate@{k}": ranking.hit_rate(predictions, truth, k),
        f"hit_rate_l1@{k}": hit_rate_of(1),
        f"hit_rate_l1_l2@{k}": hit_rate_of(2),
        f"coverage@{k}": ranking.coverage(predictions, CATALOGUE, k),
        f"diversity@{k}": ranking.diversity(predictions, k),
        f"gini@{k}": ranking.gini(predictions, CATALOGUE, k),
        "mrr": ranking.mrr(predictions, truth),
    }
    computed = calculator.compute(k_values=[k])
    assert {name: computed[name] for name in expected} == pytest.approx(expected)


def test_per_level_hit_rates():
    calculator = MetricsCalculator()
    calculator.add_batch([[B], [C], [D], [A]], [A, A, A, A])
    metrics = calculator.compute([1])
    assert (metrics["hit_rate_l1@1"], metrics["hit_rate_l1_l2@1"], metrics["hit_rate@1"]) == (0.75, 0.5, 0.25)


def test_without_a_catalogue_size_the_seen_items_are_counted():
    calculator = MetricsCalculator()
    calculator.add_batch([[A, B]], [C])
    assert calculator.compute([1])["coverage@1"] == pytest.approx(1 / 3)
    assert calculator.compute([1])["gini@1"] == pytest.approx(2 / 3)


def test_defaults_and_reset():
    calculator = MetricsCalculator()
    calculator.add_batch([[A]], [A])
    assert {name for name in calculator.compute() if name.startswith("recall")} == {
        f"recall@{k}" for k in (5, 10, 20, 50)
    }
    calculator.reset()
    with pytest.raises(ValueError, match="call add_batch first"):
        calculator.compute()
    calculator.add_batch([[B]], [A])
    assert calculator.compute()["recall@5"] == 0


def test_a_malformed_batch_adds_nothing():
    calculator = MetricsCalculator(catalogue_size=1)
    calculator.add_batch([[A, B]], [A])
    with pytest.raises(ValueError, match=r"predictions\[1\]\[0\]"):
        calculator.add_batch([[B], [(1, 2)]], [A, A])
    assert calculator.compute([1])["recall@1"] == 1
    with pytest.raises(ValueError, match="2 distinct items are recommended from a catalogue of 1"):
        calculator.compute([2])
    with pytest.raises(ValueError, match="k is 0"):
        calculator.compute([0])
