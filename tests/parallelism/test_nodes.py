"""Two launchers on loopback as two machines; a mistake that every rank makes; a rank that dies."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.trainer.conftest import ROOT, comparable, metrics_of, stage_arguments

COMPOSER = Path(sys.executable).parent / "composer"
EXACT = ("model.dropout=0", "model.expert_capacity_factor=null", "optimizer.lr=1e-3", "max_duration=8ba")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(launcher_options: list, arguments: list[str]) -> subprocess.Popen:
    command = [str(word) for word in (COMPOSER, *launcher_options, ROOT / "train.py", *arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, **pipes)


def node(rank: int, port: int) -> list:
    return ["-n", 1, "--world_size", 2, "--node_rank", rank, "--master_addr", "127.0.0.1", "--master_port", port]


def wait(processes: list[subprocess.Popen], seconds: float) -> list[str]:
    """Their standard errors; ends what is still there after that time."""
    try:
        return [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


@pytest.mark.parametrize("strategy", ["fsdp"])
def test_two_machines_train_as_one(shop, tmp_path, strategy):
    port = free_port()
    arguments = [*stage_arguments(shop, tmp_path / "two", 1), *EXACT, f"parallelism.strategy={strategy}"]
    errors = wait(machines := [start(node(rank, port), arguments) for rank in (0, 1)], 200)
    assert [machine.returncode for machine in machines] == [0, 0], errors
    arguments = [*stage_arguments(shop, tmp_path / "one", 1), *EXACT, f"parallelism.strategy={strategy}"]
    [error] = wait([alone := start(["-n", 2], arguments)], 200)
    assert alone.returncode == 0, error
    assert comparable(tmp_path / "two") == comparable(tmp_path / "one")


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused(shop, tmp_path):
    arguments = [*stage_arguments(shop, tmp_path / "run", 1), "global_train_batch_size=31"]
    [error] = wait([job := start(["-n", 2], arguments)], 200)
    assert job.returncode == 2, error[-2000:]
    assert "global_train_batch_size is 31; expected a multiple of 2 ranks" in error


def ranks_of(launcher: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks by /proc")
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("deepspeed", marks=pytest.mark.slow)])
def test_a_rank_that_dies_ends_the_job_with_an_error(shop, tmp_path, strategy):
    long = ["max_duration=100000ba", "save_interval=1000000ba", "eval_interval=1000000ba", "dist_timeout=40"]
    arguments = [*stage_arguments(shop, tmp_path / "run", 1), *long, f"parallelism.strategy={strategy}"]
    job = start(["-n", 2], arguments)
    record, deadline = tmp_path / "run/metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and not (record.exists() and len(metrics_of(record.parent)) >= 3):
        assert job.poll() is None, job.communicate()
        time.sleep(0.2)
    os.kill(ranks_of(job)[1], signal.SIGKILL)
    [error] = wait([job], 60)
    assert job.returncode != 0
    assert "Rank 1 crashed with exit code -9" in error
