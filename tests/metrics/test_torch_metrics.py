import copy
import pickle
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.metrics.ranked_cases import CATALOGUE, DISTINCT_ROWS, WIDTH, as_tensors
from tests.rank_processes import run_ranks
from ugt_composer.generation.beam_search import Recommendations
from ugt_composer.losses.unified import UnifiedLoss
from ugt_composer.metrics.batch import ROW_METRICS, EvaluationBatch, compare_pairs, rank_batch
from ugt_composer.metrics.by_length import ByLength
from ugt_composer.metrics.calculator import MetricsCalculator
from ugt_composer.metrics.torch_metrics import coverage_and_gini, evaluation_metrics

CUTS = (3, 1, WIDTH)
N = len(CATALOGUE)
MEANS = UnifiedLoss(lambda_contrastive=0.1, contrastive_negatives="catalogue", lambda_preference=0.1).means
M = len(MEANS)
LOSSES = {"loss": {"ntp_l1_loss": 0.5, "dpo_loss": 2.0}, "dpo_loss": {"dpo_loss": 1.0}}


def evaluated(rows, filler=0, seed=0):
    """The rows, and `filler` more that do not count, with random losses and pairs."""
    recommended, targets, mask = as_tensors(rows + rows[:1] * filler)
    ranked = rank_batch(recommended, targets, mask, torch.arange(len(targets)) < len(rows))
    generator = torch.Generator().manual_seed(seed)
    sums, counts, pairs = (torch.rand(size, generator=generator) for size in (M, M, 2))
    return EvaluationBatch(ranked, sums, counts + 1, pairs.double().cumsum(0))


def updated(*batches):
    metrics = evaluation_metrics(MEANS, LOSSES, CUTS, N)
    for metric in metrics.values():
        for batch in batches:
            metric.update(batch)
    return metrics


def values(metrics):
    return {name: metric.compute().item() for name, metric in metrics.items()}


def ranking(metrics):
    return {name: value for name, value in values(metrics).items() if name == "mrr" or "@" in name}


def test_no_checkpoint_has_the_counts_of_items():
    """Composer saves the state_dict of each metric, after `persistent`."""
    for metric in updated(evaluated([([CATALOGUE[0]], [CATALOGUE[0]])])).values():
        metric.persistent(mode=True)
        assert metric.state_dict() == {}


@given(DISTINCT_ROWS, st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_tensors_give_what_the_calculator_gives(rows, filler):
    rows[0] = (rows[0][0] or [CATALOGUE[0]], rows[0][1])  # without any recommendation coverage is NaN
    calculator = MetricsCalculator(catalogue_size=N)
    calculator.add_batch([row[0] for row in rows], [row[1] for row in rows])
    assert ranking(updated(evaluated(rows, filler))) == pytest.approx(calculator.compute(CUTS), abs=1e-6)


@given(DISTINCT_ROWS.filter(lambda rows: len(rows) > 1 and rows[0][0]), st.data())
@settings(max_examples=30, deadline=None)
def test_two_batches_give_what_one_batch_gives(rows, data):
    cut = data.draw(st.integers(1, len(rows) - 1))
    parts = evaluated(rows[:cut]), evaluated(rows[cut:], filler=1)
    assert ranking(updated(*parts)) == pytest.approx(ranking(updated(evaluated(rows))), abs=1e-6)


def test_losses_and_pairs_are_sums_over_counts():
    batches = [evaluated([([], [CATALOGUE[0]])], seed=seed) for seed in (1, 2)]
    found = values(updated(*batches))
    names = [mean.name for mean in MEANS]
    means = sum(b.loss_sums.double() for b in batches) / sum(b.loss_counts.double() for b in batches)
    l1, dpo = means[names.index("ntp_l1_loss")].item(), means[names.index("dpo_loss")].item()
    assert found["loss"] == pytest.approx(0.5 * l1 + 2 * dpo, rel=1e-6)
    assert found["dpo_loss"] == pytest.approx(dpo, rel=1e-6)
    wins, pairs = sum(batch.pairs for batch in batches).tolist()
    assert found["preference_accuracy"] == pytest.approx(wins / pairs, rel=1e-6)


def test_the_sums_are_in_double_precision():
    metrics = evaluation_metrics(MEANS, LOSSES, CUTS, N)
    batch = evaluated([([], [CATALOGUE[0]])])
    for _ in range(1000):
        tenths = EvaluationBatch(batch.ranked, torch.full((M,), 0.1), torch.ones(M), batch.pairs)
        metrics["dpo_loss"].update(tenths)
    assert metrics["dpo_loss"].compute().item() == pytest.approx(0.1, abs=1e-8)


def test_rows_without_a_target_do_not_count():
    recommended, targets, mask = as_tensors([([CATALOGUE[0]], [CATALOGUE[0]]), ([CATALOGUE[1]], [CATALOGUE[1]])])
    mask[1] = False
    ranked = rank_batch(recommended, targets, mask, torch.tensor([True, True]))
    metrics = values(updated(EvaluationBatch(ranked, torch.zeros(M), torch.zeros(M), torch.zeros(2))))
    assert metrics["recall@1"] == 1
    assert metrics["coverage@1"] == pytest.approx(1 / N)


def test_nothing_counted_is_nan_without_a_warning():
    recommended, targets, mask = as_tensors([([CATALOGUE[0]], [CATALOGUE[0]])])
    ranked = rank_batch(recommended, targets, mask, torch.tensor([False]))
    empty = EvaluationBatch(ranked, torch.zeros(M), torch.zeros(M), torch.zeros(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for metrics in (evaluation_metrics(MEANS, LOSSES, CUTS, N), updated(empty)):
            assert all(metric.compute().isnan() for metric in metrics.values())


def test_without_a_catalogue_coverage_and_gini_are_left_out():
    expected = {"loss", "dpo_loss", "preference_accuracy", "mrr"} | {
        f"{name}@{k}" for name in ROW_METRICS for k in CUTS
    }
    without = evaluation_metrics(MEANS, LOSSES, CUTS, None)
    assert set(without) == expected
    assert set(evaluation_metrics(MEANS, LOSSES, CUTS, 7)) == expected | {
        f"{n}@{k}" for n in ("coverage", "gini") for k in CUTS
    }
    batch = evaluated([([CATALOGUE[0], CATALOGUE[5]], [CATALOGUE[5]])])
    for metric in without.values():
        metric.update(batch)
    whole = values(updated(batch))
    assert values(without) == {name: whole[name] for name in without}


def test_a_list_shorter_than_the_cut_off_is_refused():
    metrics = evaluation_metrics(MEANS, {}, (WIDTH + 1,), N)
    with pytest.raises(RuntimeError, match="size"):
        metrics["mrr"].update(evaluated([([CATALOGUE[0]], [CATALOGUE[0]])]))


def test_a_batch_counts_once_whichever_metrics_are_updated_with_it_and_in_whatever_order():
    one, two = (evaluated([([CATALOGUE[i]], [CATALOGUE[1]])], seed=i) for i in (0, 1))
    expected = values(updated(one, two))
    metrics = evaluation_metrics(MEANS, LOSSES, CUTS, N)
    metrics["recall@1"].update(one)
    assert metrics["recall@1"].compute() == 0
    for metric in metrics.values():
        metric.update(two)
    metrics["mrr"].update(one)
    assert values(metrics) == expected
    assert expected["recall@1"] == 0.5


@pytest.mark.parametrize("backwards", [False, True])
def test_an_evaluation_starts_from_zero_for_any_order_of_resets(backwards):
    first, second = (evaluated([([CATALOGUE[i]], [CATALOGUE[1]])], seed=i) for i in (0, 1))
    metrics = updated(first)
    before = values(metrics)
    for metric in sorted(metrics.values(), key=lambda metric: metric.name, reverse=backwards):
        metric.reset()
    assert all(metric.compute().isnan() for metric in metrics.values())
    for metric in metrics.values():
        metric.update(second)
    assert values(metrics) == values(updated(second)) != before


def test_metrics_survive_copying_and_pickling_together_and_alone():
    rows = [([CATALOGUE[0], CATALOGUE[5]], [CATALOGUE[5]])]
    metrics = updated(evaluated(rows))
    expected = values(metrics)
    for twin in (copy.deepcopy(metrics), pickle.loads(pickle.dumps(metrics))):
        assert values(twin) == expected
        twin["mrr"].reset()  # shared within the copy, and only there
        assert all(metric.compute().isnan() for metric in twin.values())
        twin["mrr"].update(evaluated(rows))
        assert values(twin) == expected == values(metrics)
    alone = copy.deepcopy(metrics["recall@3"])
    alone.reset()
    alone.update(evaluated(rows))
    assert alone.compute().item() == expected["recall@3"] == metrics["recall@3"].compute().item()


def test_states_of_metrics_in_an_older_checkpoint_are_left_alone():
    metrics = updated(evaluated([([CATALOGUE[0]], [CATALOGUE[0]])]))
    expected = values(metrics)
    for metric in metrics.values():
        metric.persistent(mode=True)
        assert metric.state_dict() == {}
        old = {"sum": torch.ones(()), "count": torch.ones(()), "counts": torch.ones(N, dtype=torch.int32)}
        missing, _ = metric.load_state_dict(old, strict=False)  # as Composer does
        assert missing == []
    assert values(metrics) == expected


def test_coverage_and_gini_of_many_counts():
    counts = torch.randint(0, 2000, (3, 500), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    counts[0, ::3] = 0
    coverage, gini = coverage_and_gini(counts, int(counts.max()))
    for cut, row in enumerate(counts.tolist()):
        assert coverage[cut].item() == pytest.approx(sum(count > 0 for count in row) / 500)
        differences = sum(abs(a - b) for a in row for b in row)  # Gini's mean absolute difference
        assert gini[cut].item() == pytest.approx(differences / (2 * 500 * sum(row)), rel=1e-9)


def test_half_precision_around_the_metrics_changes_no_value():
    rows = [([CATALOGUE[i], CATALOGUE[5], CATALOGUE[7]], [CATALOGUE[5], CATALOGUE[7]]) for i in range(3)]
    expected = values(updated(evaluated(rows)))
    with torch.autocast("cpu", torch.bfloat16):
        assert values(updated(evaluated(rows))) == expected


class Transfers(TorchDispatchMode):
    """Counts copies from the CPU to the device "meta", whose tensors have no values: reading one raises an error."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [one for one in args if isinstance(one, torch.Tensor) and one.dim() > 0]
        if isinstance(result, torch.Tensor) and result.is_meta:
            self.found += [str(function) for one in tensors if one.device.type == "cpu" and one.numel()]
        return result


@pytest.mark.parametrize("cuts", [(5,), (5, 10, 20, 50)])
def test_the_host_waits_for_the_device_twice_an_evaluation(monkeypatch, cuts):
    metrics, by_length, rows = evaluation_metrics(MEANS, LOSSES, cuts, N), ByLength(5), 4
    by_length.to("meta")
    reads = []

    def read(tensor):
        assert tensor.is_meta
        reads.append(tensor.shape)
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    with torch.device("meta"):
        ids, index, places = (torch.zeros(rows, cuts[-1], *more, dtype=torch.long) for more in ((3,), (), ()))
        targets, mask, some = torch.zeros(rows, 2, 3, dtype=torch.long), torch.ones(rows, 2).bool(), torch.ones(rows)
        losses = torch.ones(M)
    with Transfers() as transfers:
        for _ in range(2):
            for metric in metrics.values():
                metric.to("meta")
            for metric in metrics.values():
                metric.reset()
            for _ in range(2):
                ranked = rank_batch(Recommendations(ids, index, places, places), targets, mask, some.bool())
                batch = EvaluationBatch(
                    ranked, losses, losses, compare_pairs(some, some[:, None], some.bool()[:, None])
                )
                for metric in metrics.values():
                    metric.update(batch)
                by_length.update(ranked, some.long())
            assert transfers.found == reads == []
            with monkeypatch.context() as patches:
                patches.setattr(torch.Tensor, "cpu", read)
                assert all(metric.compute().device.type == "cpu" for metric in metrics.values())
            assert len(reads) == 2
            reads.clear()


UNEVEN = [([CATALOGUE[i], CATALOGUE[2 * i], CATALOGUE[i + 3]], [CATALOGUE[4], CATALOGUE[2 * i]]) for i in (1, 2, 4, 5)]
# By evaluation and rank, the rows of each batch; in the second one, a rank has none.
PARTS = [[[UNEVEN[:1], UNEVEN[1:3], UNEVEN[3:]], [UNEVEN[1:]]], [[UNEVEN[:2]], []]]


def part_batches(evaluation, rank):
    return [evaluated(rows, filler=rank, seed=10 * rank + n) for n, rows in enumerate(PARTS[evaluation][rank])]


def run_rank(rank, folder):
    all_reduce, collectives, found = dist.all_reduce, [], []
    dist.all_reduce = lambda tensor: (collectives.append(str(tensor.dtype)), all_reduce(tensor))
    metrics = evaluation_metrics(MEANS, LOSSES, CUTS, N)
    for evaluation in range(2):
        for metric in metrics.values():
            metric.reset()
        for batch in part_batches(evaluation, rank):
            for metric in metrics.values():
                metric.update(batch)
        found.append(values(metrics))
        assert values(metrics) == found[-1]
    Path(folder, f"{rank}.pkl").write_bytes(pickle.dumps((found, collectives)))


@pytest.mark.processes
def test_ranks_with_uneven_batches_give_what_one_process_gives(tmp_path):
    run_ranks(run_rank, (str(tmp_path),), 2)
    ranks = [pickle.loads((tmp_path / f"{rank}.pkl").read_bytes()) for rank in range(2)]
    for evaluation in range(2):
        whole = updated(*part_batches(evaluation, 0), *part_batches(evaluation, 1))
        first, second = (found[evaluation] for found, _ in ranks)
        assert first == second == pytest.approx(values(whole), abs=1e-6)
    assert all(collectives == ["torch.float64", "torch.int32"] * 2 for _, collectives in ranks)
