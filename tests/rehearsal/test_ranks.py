"""Several processes on a fake GPU each: every rank calls the same collectives in the same order.

The driver compares operation, size and root of each call between the ranks, and kills them if they differ.
"""

import json
import subprocess
import sys

import pytest

from tests.rehearsal.conftest import Lines, on_ranks, rehearse
from tests.rehearsal.driver import environment
from tests.rehearsal.jobs import STRATEGIES, in_one_process, name_of
from tests.shop import ROOT, stage_arguments

pytestmark = pytest.mark.timeout(3600)  # the first test waits for all runs
FAST = in_one_process(name_of("amp_bf16", strategy, 3) for strategy in ("ddp", "fsdp", "zero-3"))
WHOLE = in_one_process(
    [
        *(name_of("amp_bf16", strategy, 3) for strategy in STRATEGIES),
        *(name_of("amp_fp16", strategy, 3) for strategy in ("ddp", "fsdp", "zero-2", "zero-3")),
        "catalogue-dot",
        "checkpointing-fsdp",
        "reduce-every-microbatch",
        "sharded-reference-fsdp",
        "sharded-reference-zero-3",
        "sharded-checkpoint-fsdp",
        "sharded-checkpoint-zero-2",
        "sharded-checkpoint-zero-3",
        "offload-fsdp",
    ]
)
BATCHES = 3  # with a save after the last


@pytest.fixture(scope="session")
def two_ranks(driver, shop, trained, tmp_path_factory) -> Lines:
    """The results of BATCHES batches of each fast job, by name."""
    out = tmp_path_factory.mktemp("two-ranks")
    return rehearse(FAST, driver, shop, trained, out, ranks=2, batches=BATCHES)


@pytest.fixture(scope="session")
def whole(driver, shop, trained, tmp_path_factory) -> dict[int, Lines]:
    """By number of ranks, the results of jobs that are also evaluated, saved and resumed."""
    return {
        ranks: rehearse(WHOLE, driver, shop, trained, tmp_path_factory.mktemp(f"ranks-{ranks}"), ranks=ranks)
        for ranks in (2, 4)
    }


@pytest.mark.parametrize("name", FAST)
def test_two_ranks_call_the_same_collectives(two_ranks, name):
    line = two_ranks[name]
    assert line["error"] is None, line["error"]
    assert line["launches"] > 5_000
    assert line["sent"] > 100_000  # by NCCL, where the driver compares


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", WHOLE)
def test_collectives_match_in_evaluations_saves_and_resumed_runs(whole, name, ranks):
    line = whole[ranks][name]
    assert line["error"] is None, line["error"]


def run_on_two_ranks(driver: list[str], *words: str) -> subprocess.CompletedProcess:
    """The ended process of a Python program on two ranks with a GPU each."""
    return subprocess.run(
        [*on_ranks(2), *driver, sys.executable, *words],
        cwd=ROOT,
        env=environment(NULLGPU_COUNT="2"),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.mark.slow
def test_commands_divide_their_rows_among_gpus(driver, shop, trained, tmp_path):
    """Their ranks talk over gloo, and hold the model on a GPU each."""
    model, users = ("--checkpoint", str(trained / "stage2" / "best")), tmp_path / "users.jsonl"
    lines = [json.dumps({"user_id": f"u{user}", "items": ["item-1", "item-2"]}) for user in range(30)]
    users.write_text("\n".join(lines) + "\n")
    commands = {
        "figures.json": ["evaluate", *model, "--data", str(shop / "eval"), "--json"],
        "lists": ["recommend", *model, "--history", str(users), "--users-per-part", "8", "--out"],
        "rows": ["reference", *model, "--data", str(shop / "preference"), "--out"],
    }
    for name, command in commands.items():
        result = run_on_two_ranks(driver, "-m", "ugt_composer.cli.main", *command, str(tmp_path / name))
        assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads((tmp_path / "figures.json").read_text())["metrics"].keys() >= {"coverage@10"}
    assert json.loads((tmp_path / "lists" / "index.json").read_text())["users"] == 30
    assert (tmp_path / "rows" / "index.json").exists()


@pytest.fixture
def train_on_two_ranks(driver, shop, trained, tmp_path):
    """train_on_two_ranks(*overrides, mistake=()) → the ended process of four batches of stage 1 by train.py."""

    def run(*overrides: str, mistake: tuple[str, str] | tuple[()] = ()) -> subprocess.CompletedProcess:
        short = ["max_duration=4ba", "eval_interval=2ba", "device_train_microbatch_size=8", "dist_timeout=120"]
        arguments = [*mistake, *stage_arguments(shop, tmp_path / "run", 1), *short, *overrides]
        return run_on_two_ranks(driver, str(ROOT / "tests/rehearsal/train.py"), *arguments)

    return run


@pytest.mark.slow
def test_the_program_trains_under_the_launcher(train_on_two_ranks, tmp_path):
    result = train_on_two_ranks()
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "run" / "latest" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_collective_called_by_one_rank_only_is_detected(train_on_two_ranks):
    result = train_on_two_ranks(mistake=("--one-more", "1"))
    assert result.returncode == 77, result.stderr[-3000:]
    assert "NULL NCCL: ranks differ" in result.stderr


@pytest.mark.slow
def test_a_rank_whose_gpu_waits_for_one_that_stalls_ends_the_job(train_on_two_ranks):
    result = train_on_two_ranks("dist_timeout=5", mistake=("--stall", "1"))
    assert result.returncode == 1, result.stderr[-3000:]
    assert "no progress within dist_timeout (5 s); the main thread is at " in result.stderr
