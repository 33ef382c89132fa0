"""Ranks without a preference row, with a single row, with nothing but ignored labels; a last batch that is smaller."""

import math

import pytest

from benchmarks.parity import BASE, BOUND, STRATEGIES, largest_difference, metrics_of
from tests.parallelism.conftest import THIN_BATCHES


@pytest.mark.parametrize("rows", THIN_BATCHES)
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != BASE])
def test_thin_batches_neither_hang_nor_differ(thin_runs, name, rows):
    lines = metrics_of(thin_runs / str(rows) / name)
    assert len(lines) == math.ceil(24 / rows)  # 23 rows, and one again, so that four ranks could share them
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert largest_difference(metrics_of(thin_runs / str(rows) / BASE), lines) <= BOUND


def test_the_data_is_as_thin_as_the_test_means(thin_runs):
    lines = metrics_of(thin_runs / "2" / BASE)
    assert any(line["loss/train/dpo_loss"] == 0 for line in lines)
    assert any(line["loss/train/ntp_loss"] == 0 for line in lines)
    assert any(line["loss/train/dpo_loss"] > 0 for line in lines)
