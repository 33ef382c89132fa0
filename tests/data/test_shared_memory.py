"""Shared-memory segments, leases and lock files of concurrent runs, of a job with two launchers, of killed runs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import gettempdir

import pytest

from tests.data.conftest import ROWS
from ugt_composer.data import shared_memory
from ugt_composer.data.shared_memory import LEASE, join_lease, lease_folder, remove_stale, take_lease

ROOT = Path(__file__).resolve().parents[2]

# A rank of a run. Arguments: the data folder, then the seconds to pause in the middle of reading it.
PROGRAM = """
import json, sys, time
from composer.utils import dist
from ugt_composer.config.schema import StreamConfig
from ugt_composer.data.streaming_patches import RowDataset, training_streams
from ugt_composer.training.loaders import RowLoader

dist.initialize_dist("cpu", timeout=60)
streams = training_streams([StreamConfig(local=sys.argv[1])])
dataset = RowDataset(streams=streams, batch_size=8, shuffle=True, num_canonical_nodes=4)
batches = RowLoader(dataset, "data.train", 1, 60, batch_size=8, persistent_workers=True)
rows = []
for number, batch in enumerate(batches):
    rows += batch["row_ids"].tolist()
    if number == 1:
        print(dataset._shm_prefix_int, flush=True)
        time.sleep(float(sys.argv[2]))
print(json.dumps(rows), flush=True)
"""


def left_by(number: int) -> set[str]:
    names = {path.name for folder in (lease_folder(), Path(gettempdir())) for path in folder.glob(f"{number:06}_*")}
    return {name.removeprefix(f"{number:06}_") for name in names}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Job:
    """Processes of one job, each in its own process group, as launchers of `nodes` × `ranks` would start them."""

    def __init__(self, folder: Path, nodes: int = 1, ranks: int = 1, hold: float = 3.0):
        port = str(free_port())
        self.processes = []
        for rank in range(nodes * ranks):
            world = {"RANK": rank, "WORLD_SIZE": nodes * ranks, "LOCAL_RANK": rank % ranks, "LOCAL_WORLD_SIZE": ranks}
            world |= {"NODE_RANK": rank // ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
            environment = os.environ | {name: str(value) for name, value in world.items()}
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, str(folder), str(hold)],
                    env=environment,
                    cwd=ROOT,
                    text=True,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                )
            )

    def numbers(self) -> list[int]:
        """The numbers of the segments, once all ranks are in the middle of an epoch."""
        return [int(process.stdout.readline()) for process in self.processes]

    def rows(self) -> list[int]:
        outputs = [process.stdout.read() for process in self.processes]
        assert [process.wait() for process in self.processes] == [0] * len(outputs)
        return sorted({row for output in outputs for row in json.loads(output)})

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def start():
    """start(folder, nodes=1, ranks=1, hold=3.0) → a Job, which is ended at the end of the test at the latest."""
    jobs = []

    def make(*arguments, **options) -> Job:
        jobs.append(Job(*arguments, **options))
        return jobs[-1]

    yield make
    for job in jobs:
        job.kill()


@pytest.mark.slow
def test_runs_on_one_folder_and_machine_do_not_interfere(start, converted):
    """A killed run, one of two launchers and one of two ranks: leftovers of the killed one are removed, and the others
    read every row."""
    killed, launchers, ranks = start(converted(), hold=60), start(converted(), nodes=2), start(converted(), ranks=2)
    living, (dead,) = [*launchers.numbers(), *ranks.numbers()], killed.numbers()
    assert len({dead, *living}) == 4  # each launcher has its own, ranks of one launcher share theirs
    assert {LEASE, "shard_states", "barrier_filelock"} <= left_by(dead)
    killed.kill()
    for _ in range(100):  # its worker ends a moment later, and keeps the lease until then
        remove_stale()
        if not left_by(dead):
            break
        time.sleep(0.1)
    assert not left_by(dead)
    for job in (launchers, ranks):
        assert job.rows() == list(range(ROWS))
    assert not [left_by(number) for number in living if left_by(number)]


def in_a_child(action) -> int:
    """Runs a function in a forked process, which is then killed. Returns its result."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, str(action()).encode())
        time.sleep(60)
        os._exit(0)
    result = int(os.read(reader, 100))
    os.close(reader)
    os.close(writer)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return result


@pytest.fixture
def leases(tmp_path, monkeypatch):
    """An empty lease folder of this test; the process holds no lease."""
    monkeypatch.setattr(shared_memory, "lease_folder", lambda: tmp_path)
    monkeypatch.setattr(shared_memory, "_leases", {})
    return tmp_path


def test_a_lease_is_stale_when_all_who_hold_it_are_gone(leases):
    own, dead = take_lease(), in_a_child(take_lease)
    assert remove_stale() == [dead]
    assert [path.name for path in leases.iterdir()] == [f"{own}_{LEASE}"]


def test_a_lease_lives_on_with_whoever_joined_it(leases):
    number = take_lease()
    descriptor = shared_memory._leases.pop(number)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        join_lease(number)
        os.write(writer, b"1")
        time.sleep(60)
        os._exit(0)
    os.read(reader, 1)
    os.close(descriptor)
    assert remove_stale() == []
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert remove_stale() == [number]


def test_other_users_leases_and_other_files_are_left_alone(leases, monkeypatch):
    dead = in_a_child(take_lease)
    (leases / f"notes_{LEASE}").touch()
    (leases / "000000_locals").touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: 12345)
        assert remove_stale() == []
    assert remove_stale() == [dead]
    assert {path.name for path in leases.iterdir()} == {f"notes_{LEASE}", "000000_locals"}


def test_the_last_one_to_leave_removes_what_is_left(leases):
    number = take_lease()
    shared_memory._clean_up()
    assert not list(leases.iterdir())
    assert number not in shared_memory._leases


def test_numbers_are_never_those_of_streaming_itself(leases):
    numbers = [take_lease() for _ in range(50)]
    assert len(set(numbers)) == 50
    assert all(10**6 <= number < 10**9 for number in numbers)
