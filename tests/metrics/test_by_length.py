"""Metrics by the length of the history."""

import pytest
import torch

from ugt_composer.generation.beam_search import Recommendations
from ugt_composer.metrics.batch import rank_batch
from ugt_composer.metrics.by_length import ByLength

A, B = [5, 6, 7], [5, 7, 8]


def test_each_bucket_has_the_mean_over_its_own_counted_rows():
    lengths = torch.tensor([0, 1, 5, 6, 50, 51, 51])
    best = [A, A, B, A, B, A, A]
    recommended = Recommendations(
        torch.tensor(best)[:, None], torch.zeros(7, 1, dtype=torch.long), *torch.zeros(2, 7, 1)
    )
    rows = torch.tensor([True] * 6 + [False])
    ranked = rank_batch(recommended, torch.tensor([[A]] * 7), torch.ones(7, 1, dtype=torch.bool), rows)
    metric = ByLength(k=1)
    for part in (slice(0, 3), slice(3, 7)):
        values = {name: value[part] for name, value in ranked.row_values.items()}
        metric.update(ranked._replace(counted=ranked.counted[part], row_values=values), lengths[part])
    found = {row["length"]: row for row in metric.compute()}
    assert {length: row["users"] for length, row in found.items()} == {
        "0": 1,
        "1-5": 2,
        "6-10": 1,
        "21-50": 1,
        "51+": 1,
    }
    assert found["1-5"]["recall@1"] == pytest.approx(0.5)
    assert found["1-5"]["hit_rate_l1@1"] == pytest.approx(1)
    assert found["51+"]["ndcg@1"] == pytest.approx(1)


def test_without_a_row_there_is_no_bucket():
    assert ByLength(k=10).compute() == []
