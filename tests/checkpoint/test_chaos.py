"""A few kills of `make chaos` at random moments, with random signals and targets; results compared bit for bit."""

from pathlib import Path

import pytest

from tests.chaos import Plan, chaos, start_command
from tests.parity import BASE
from tests.shop import stage_arguments

ROWS, BATCH = 205, 32


@pytest.mark.slow
def test_killed_runs_record_what_an_uninterrupted_one_does(shop, tmp_path):
    def command(folder: Path, strategy: str) -> list[str]:
        more = ["model.dropout=0.2", "data.train.num_workers=1", "max_duration=4ep"]
        return start_command(strategy, [*stage_arguments(shop, folder, 1), *more])

    plan = Plan(command, (BASE,), evaluates_every=5, epoch=-(-ROWS // BATCH))
    tally = chaos(plan, tmp_path, kills=3, seed=3, bound=0.0)
    assert not tally.wrong_exits, tally.wrong_exits[0]
    assert tally.kills.total() == 3
    assert (tally.divergences, tally.checkpoints_lost) == (0, 0)
