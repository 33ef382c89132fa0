"""Two ranks against one: the same numbers, each row counted once."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.conftest import ROOT, metrics_of, stage_arguments

EXACT = (
    "model.dropout=0",
    "model.expert_capacity_factor=null",
    "device_train_microbatch_size=32",
    "loss.num_negatives=40",
    "optimizer.lr=1e-3",
)


def launch(ranks: int, arguments: list[str]) -> subprocess.CompletedProcess:
    composer = Path(sys.executable).parent / "composer"
    command = [composer, "-n", str(ranks), "--master_port", str(29600 + ranks), ROOT / "train.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_two_ranks_give_the_numbers_of_one(shop, stages, tmp_path):
    for ranks in (1, 2):
        arguments = stage_arguments(shop, tmp_path / str(ranks), 3, stages / "stage2" / "best")
        result = launch(ranks, [*arguments, *EXACT])
        assert result.returncode == 0, result.stderr[-2000:]
    one, two = metrics_of(tmp_path / "1"), metrics_of(tmp_path / "2")
    assert len(one) == len(two)
    for line, other in zip(one, two, strict=True):
        for name, value in line.items():
            # Until the policy has left the reference, rounding decides who is preferred; and who is first among equals.
            if name.endswith(("samples/s", "dpo_accuracy", "dpo_reward_margin", "2i_acc", "2u_acc")):
                continue
            assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-7), (line["batch"], name)


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused(shop, tmp_path):
    result = launch(2, [*stage_arguments(shop, tmp_path / "run", 1), "global_train_batch_size=31"])
    assert result.returncode == 2, result.stderr[-2000:]
    assert "global_train_batch_size is 31; expected a multiple of 2 ranks" in result.stderr
