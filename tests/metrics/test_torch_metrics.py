import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked_cases import CATALOGUE, DISTINCT_ROWS, WIDTH, as_tensors

from ugt_composer.metrics.batch import rank_batch
from ugt_composer.metrics.calculator import MetricsCalculator
from ugt_composer.metrics.torch_metrics import PairAccuracy, RowMean, build_ranking_metrics

CUTS = (1, 3, WIDTH)
N = len(CATALOGUE)


def ranked(rows, filler=0):
    """A RankedBatch of the rows, and of `filler` more that do not count."""
    recommended, targets, mask = as_tensors(rows + rows[:1] * filler)
    return rank_batch(recommended, targets, mask, torch.arange(len(targets)) < len(rows))


def updated(*batches):
    metrics = build_ranking_metrics(CUTS, N)
    for metric in metrics.values():
        for batch in batches:
            metric.update(batch)
    return metrics


def values(metrics):
    return {name: metric.compute().item() for name, metric in metrics.items()}


@given(DISTINCT_ROWS, st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_tensors_give_what_the_calculator_gives(rows, filler):
    rows[0] = (rows[0][0] or [CATALOGUE[0]], rows[0][1])  # coverage of nothing is NaN here
    calculator = MetricsCalculator(catalogue_size=N)
    calculator.add_batch([row[0] for row in rows], [row[1] for row in rows])
    assert values(updated(ranked(rows, filler))) == pytest.approx(calculator.compute(CUTS), abs=1e-6)


@given(DISTINCT_ROWS.filter(lambda rows: len(rows) > 1 and rows[0][0]), st.data())
@settings(max_examples=30, deadline=None)
def test_two_batches_and_two_ranks_give_what_one_batch_gives(rows, data):
    cut = data.draw(st.integers(1, len(rows) - 1))
    whole = values(updated(ranked(rows)))
    parts = ranked(rows[:cut]), ranked(rows[cut:], filler=1)
    assert values(updated(*parts)) == pytest.approx(whole, abs=1e-6)

    here, there = updated(parts[0]), updated(parts[1])
    for name, metric in here.items():
        other = iter([getattr(there[name], state) for state in metric._defaults])
        metric.dist_sync_fn = lambda state, group=None, other=other: [state, next(other)]
        metric.distributed_available_fn = lambda: True
    assert values(here) == pytest.approx(whole, abs=1e-6)


def test_rows_without_a_target_do_not_count():
    recommended, targets, mask = as_tensors([([CATALOGUE[0]], [CATALOGUE[0]]), ([CATALOGUE[1]], [CATALOGUE[1]])])
    mask[1] = False
    metrics = values(updated(rank_batch(recommended, targets, mask, torch.tensor([True, True]))))
    assert metrics["recall@1"] == 1
    assert metrics["coverage@1"] == pytest.approx(1 / N)


def test_padding_never_hits_padding():
    recommended, targets, mask = as_tensors([([], [CATALOGUE[0]])])
    targets[:] = 0
    assert values(updated(rank_batch(recommended, targets, mask, torch.tensor([True]))))["hit_rate_l1@1"] == 0


def test_nothing_counted_is_nan_without_a_warning():
    metrics = {**build_ranking_metrics(CUTS, N), "pairs": PairAccuracy()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(metric.compute().isnan() for metric in metrics.values())
        recommended, targets, mask = as_tensors([([CATALOGUE[0]], [CATALOGUE[0]])])
        empty = rank_batch(recommended, targets, mask, torch.tensor([False]))
        assert all(metric.compute().isnan() for metric in updated(empty).values())


def test_without_a_catalogue_coverage_and_gini_are_left_out():
    names = ("recall", "ndcg", "hit_rate", "hit_rate_l1", "hit_rate_l1_l2", "diversity")
    expected = {"mrr"} | {f"{name}@{k}" for name in names for k in (5, 10)}
    assert set(build_ranking_metrics((5, 10), None)) == expected
    both = {f"{name}@{k}" for name in ("coverage", "gini") for k in (5, 10)}
    assert set(build_ranking_metrics((5, 10), 7)) == expected | both


def test_a_list_shorter_than_the_cut_off_is_refused():
    metric = build_ranking_metrics((WIDTH + 1,), N)[f"recall@{WIDTH + 1}"]
    with pytest.raises(IndexError):
        metric.update(ranked([([CATALOGUE[0]], [CATALOGUE[0]])]))


def test_metrics_survive_copying_pickling_and_their_state_dict():
    rows = [([CATALOGUE[0], CATALOGUE[5]], [CATALOGUE[5]])]
    metrics = {**updated(ranked(rows)), "pairs": PairAccuracy()}
    metrics["pairs"].update(torch.zeros(1), -torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))
    expected = values(metrics)
    for twin in (copy.deepcopy(metrics), pickle.loads(pickle.dumps(metrics))):
        assert values(twin) == expected
        for metric in twin.values():
            metric.reset()
        assert all(metric.compute().isnan() for metric in twin.values())
    fresh = {**build_ranking_metrics(CUTS, N), "pairs": PairAccuracy()}
    for name, metric in metrics.items():
        metric.persistent(True)
        fresh[name].load_state_dict(metric.state_dict())
    assert values(fresh) == expected


def test_pair_accuracy_counts_ties_half_and_padding_not_at_all():
    metric = PairAccuracy()
    chosen = torch.tensor([-1.0, -2.0])
    rejected = torch.tensor([[-2.0, -1.0, -0.5], [-0.5, float("nan"), -5.0]])
    metric.update(chosen, rejected, torch.tensor([[True, True, True], [False, False, True]]))
    assert metric.compute().item() == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    metric.update(chosen[:1], rejected[:1, :0], torch.ones(1, 0, dtype=torch.bool))
    assert metric.compute().item() == pytest.approx(2.5 / 4)


def test_row_mean_sums_in_double_precision():
    metric = RowMean()
    values_ = torch.full((3,), 0.1)
    for _ in range(1000):
        metric.update(values_, torch.tensor([True, True, False]))
    assert metric.compute().item() == pytest.approx(0.1, abs=1e-8)
    assert metric.count.item() == 2000
