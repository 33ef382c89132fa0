"""What one batch contributes to the metrics."""

import math
import subprocess
import sys

import pytest
import torch

from tests.metrics.ranked_cases import CATALOGUE, as_tensors
from tests.rehearsal.driver import ROOT, environment, on_driver
from ugt_composer.generation.beam_search import Recommendations
from ugt_composer.metrics.batch import compare_pairs, rank_batch


def test_padding_never_hits_padding():
    recommended, targets, mask = as_tensors([([], [CATALOGUE[0]])])
    targets[:] = 0
    ranked = rank_batch(recommended, targets, mask, torch.tensor([True]))
    assert ranked.row_values["hit_rate_l1"].sum() == 0


def test_the_sums_are_those_of_the_rows_that_count():
    rows = [([CATALOGUE[0], CATALOGUE[5]], [CATALOGUE[5]]), ([CATALOGUE[5]], [CATALOGUE[5]])]
    ranked = rank_batch(*as_tensors(rows), row_mask=torch.tensor([True, False]))
    expected = torch.cat([values[0] for values in ranked.row_values.values()])
    torch.testing.assert_close(ranked.sums, expected.double())
    assert ranked.rows == 1
    assert ranked.row_values["ndcg"][0, :3].tolist() == pytest.approx([0, 1 / math.log2(3), 1 / math.log2(3)])


def test_pairs_count_ties_half_and_padding_not_at_all():
    chosen = torch.tensor([-1.0, -2.0])
    rejected = torch.tensor([[-2.0, -1.0, -0.5], [-0.5, float("nan"), -5.0]])
    mask = torch.tensor([[True, True, True], [False, False, True]])
    assert compare_pairs(chosen, rejected, mask).tolist() == [1 + 0.5 + 0 + 1, 4]
    assert compare_pairs(chosen[:1], rejected[:1, :0], mask[:1, :0]).tolist() == [0, 0]


def evaluate_on_a_gpu():
    """Runs two evaluations with deterministic algorithms and counts their waits; values do not matter here."""
    import warnings

    from ugt_composer.metrics.batch import EvaluationBatch
    from ugt_composer.metrics.by_length import ByLength
    from ugt_composer.metrics.torch_metrics import evaluation_metrics

    rows = 8
    metrics = evaluation_metrics((), {"loss": {}}, (5, 10, 20, 50), 1000)
    by_length = ByLength(10).to("cuda")
    with torch.device("cuda"):
        ids, index = torch.zeros(rows, 50, 3, dtype=torch.long), torch.zeros(rows, 50, dtype=torch.long)
        targets, mask = torch.zeros(rows, 2, 3, dtype=torch.long), torch.zeros(rows, 2, dtype=torch.bool)
        some, losses = torch.zeros(rows), torch.zeros(0)
    recommended = Recommendations(ids, index, index, index)

    def begin():
        for metric in metrics.values():
            metric.to("cuda")
        for metric in metrics.values():
            metric.reset()

    def update():
        ranked = rank_batch(recommended, targets, mask, mask[:, 0])
        batch = EvaluationBatch(ranked, losses, losses, compare_pairs(some, some[:, None], mask[:, :1]))
        for metric in metrics.values():
            metric.update(batch)
        by_length.update(ranked, index[:, 0])

    def end():
        assert all(math.isfinite(v) or math.isnan(v) for v in (float(one.compute()) for one in metrics.values()))

    def waits(step):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
        return sum("synchronizing CUDA operation" in str(one.message) for one in caught)

    torch.cuda.set_sync_debug_mode("warn")
    found = [waits(step) for step in (begin, update, end, begin, update, end)]
    torch.use_deterministic_algorithms(True)
    for step in (begin, update, end):
        step()
    print("waits", *found)


@pytest.mark.processes
def test_evaluation_syncs_with_the_gpu_only_at_its_end():
    done = subprocess.run(
        [
            *on_driver(),
            sys.executable,
            "-c",
            "from tests.metrics.test_batch import evaluate_on_a_gpu; evaluate_on_a_gpu()",
        ],
        env=environment(PYTHONPATH=str(ROOT), CUBLAS_WORKSPACE_CONFIG=":4096:8"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.stdout.split()[-7:] == ["waits", "0", "0", "2", "0", "0", "2"], done.stderr
