"""What only several ranks can get wrong."""

import subprocess
import sys
from pathlib import Path

from tests.trainer.conftest import ROOT, stage_arguments


def launch(ranks: int, arguments: list[str]) -> subprocess.CompletedProcess:
    composer = Path(sys.executable).parent / "composer"
    command = [composer, "-n", str(ranks), ROOT / "train.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused(shop, tmp_path):
    result = launch(2, [*stage_arguments(shop, tmp_path / "run", 1), "global_train_batch_size=31"])
    assert result.returncode == 2, result.stderr[-2000:]
    assert "global_train_batch_size is 31; expected a multiple of 2 ranks" in result.stderr
