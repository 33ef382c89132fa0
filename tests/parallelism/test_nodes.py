"""Two launchers on loopback as two machines: training, preemption, a mistake that every rank makes, a killed rank."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.shop import ROOT, comparable, metrics_of, stage_arguments
from ugt_composer.checkpoint.run_checkpoints import newest_checkpoint
from ugt_composer.checkpoint.save_folder import batch_of
from ugt_composer.errors import EXIT_PREEMPTED

COMPOSER = Path(sys.executable).parent / "composer"
EXACT = ("model.dropout=0", "model.expert_capacity_factor=null", "optimizer.lr=1e-3", "max_duration=8ba")
LONG = ("max_duration=100000ba", "save_interval=1000000ba", "eval_interval=1000000ba", "dist_timeout=40")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(launcher_options: list, arguments: list[str]) -> subprocess.Popen:
    command = [str(word) for word in (COMPOSER, *launcher_options, ROOT / "train.py", *arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=pipe, stderr=pipe)


def node(rank: int, port: int) -> list:
    return ["-n", 1, "--world_size", 2, "--node_rank", rank, "--master_addr", "127.0.0.1", "--master_port", port]


def wait(processes: list[subprocess.Popen], seconds: float) -> list[str]:
    """Waits up to the timeout, then kills the rest. Returns the standard errors of the processes."""
    try:
        return [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


@pytest.mark.slow
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


def come_to_batch(number: int, record: Path, jobs: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (record.exists() and len(metrics_of(record.parent)) >= number):
        assert all(job.poll() is None for job in jobs), [job.communicate() for job in jobs if job.poll() is not None]
        time.sleep(0.1)


@pytest.mark.slow
def test_a_signal_to_one_machine_preempts_both(shop, tmp_path):
    port = free_port()
    arguments = [*stage_arguments(shop, tmp_path / "run", 1), *LONG]
    machines = [start(node(rank, port), arguments) for rank in (0, 1)]
    come_to_batch(3, tmp_path / "run/metrics.jsonl", machines)
    machines[1].send_signal(signal.SIGTERM)
    errors = wait(machines, 60)
    assert [machine.returncode for machine in machines] == [EXIT_PREEMPTED, EXIT_PREEMPTED], errors
    newest, _ = newest_checkpoint(tmp_path / "run")
    assert batch_of(newest) == metrics_of(tmp_path / "run")[-1]["batch"]


@pytest.mark.slow
def test_a_batch_that_does_not_divide_over_the_ranks_is_refused(shop, tmp_path):
    arguments = [*stage_arguments(shop, tmp_path / "run", 1), "global_train_batch_size=31"]
    [error] = wait([job := start(["-n", 2], arguments)], 200)
    assert job.returncode == 2, error[-2000:]
    assert "global_train_batch_size is 31; expected a multiple of 2 ranks" in error


def ranks_of(launcher: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks by /proc")
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed"])
def test_a_rank_that_dies_ends_the_job_with_an_error(shop, tmp_path, strategy):
    arguments = [*stage_arguments(shop, tmp_path / "run", 1), *LONG, f"parallelism.strategy={strategy}"]
    job = start(["-n", 2], arguments)
    come_to_batch(3, tmp_path / "run/metrics.jsonl", [job])
    os.kill(ranks_of(job)[1], signal.SIGKILL)
    [error] = wait([job], 60)
    assert job.returncode != 0
    assert "Rank 1 crashed with exit code -9" in error
