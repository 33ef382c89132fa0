"""The checkpoint that machines with save folders of their own resume from, and what each of them downloads for it."""

import pickle
import shutil
from collections import defaultdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
import torch

from tests.checkpoint.conftest import content_of
from tests.checkpoint.machine_threads import MachineThreads
from ugt_composer.checkpoint import remote
from ugt_composer.checkpoint.machines import Machines
from ugt_composer.checkpoint.run_checkpoints import SHARDED_KEYS, SHARDS, STATE, corruption_of
from ugt_composer.checkpoint.save_folder import list_checkpoints
from ugt_composer.checkpoint.separate_folders import agree_on_newest
from ugt_composer.checkpoint.sharded import write_folder_record
from ugt_composer.errors import UserError
from ugt_composer.parallelism.deepspeed import DeepSpeedStrategy
from ugt_composer.parallelism.fsdp import FsdpStrategy
from ugt_composer.storage.record import RECORD, facts_of
from ugt_composer.storage.s3 import MissingError, Store

MACHINES = [Machines(number, 2, (number,), True) for number in (0, 1)]
OPTIMIZER = "engine/zero_pp_rank_{}_mp_rank_00_optim_states.pt"
# {name: strategy, files that every rank reads, file of one rank}
FILES: dict[str, tuple[Any, list[str], str]] = {
    "fsdp": (FsdpStrategy, [".metadata"], "__{}_0.distcp"),
    "deepspeed": (DeepSpeedStrategy, ["engine/mp_rank_00_model_states.pt"], OPTIMIZER),
}


class MemoryStore(Store):
    """Objects in memory. `fetched` has the names that each thread has downloaded."""

    def __init__(self) -> None:
        super().__init__("s3://bucket/run")
        self.objects: dict[str, bytes] = {}
        self.fetched: dict[str, set[str]] = defaultdict(set)

    def list(self, folder: str = "") -> dict[str, int]:
        return {name: len(content) for name, content in self.objects.items() if name.startswith(folder)}

    def read_bytes(self, name: str) -> bytes:
        if name not in self.objects:
            raise MissingError(f"{name}: there is no such object")
        return self.objects[name]

    def fetch(self, name: str, path: Path) -> None:
        self.fetched[str(path)[: str(path).index("/ba")]].add(name)
        path.write_bytes(self.read_bytes(name))

    def put(self, name: str, source: BinaryIO | bytes) -> None:
        self.objects[name] = source if isinstance(source, bytes) else source.read()


class Job:
    """A job on two machines whose checkpoints have a part in each of two folders, and all files in a store."""

    def __init__(self, tmp_path: Path, patch: pytest.MonkeyPatch, strategy: str):
        kind, self.common, self.of_rank = FILES[strategy]
        self.strategy: Any = SimpleNamespace(shards_read=partial(kind.shards_read, None))
        self.threads = MachineThreads(patch)
        self.store = MemoryStore()
        self.folders = [tmp_path / "first", tmp_path / "second"]
        for folder in self.folders:
            folder.mkdir()

    def part(self, number: int) -> set[str]:
        names = {f"{SHARDS}/{name}" for name in (*self.common, self.of_rank.format(number))}
        return names | ({STATE} if number == 0 else set())

    def write(self, batch: int) -> None:
        record = {}
        paths = [folder / f"ba{batch:08d}" for folder in self.folders]
        for number, path in enumerate(paths):
            for name in self.part(number):
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                rank = number if name == f"{SHARDS}/{self.of_rank.format(number)}" else "all"
                if name == STATE:
                    torch.save(content_of(batch, SHARDED_KEYS), path / name)
                elif name.endswith(".pt"):
                    torch.save({"batch": batch, "rank": rank}, path / name)
                else:
                    (path / name).write_bytes(pickle.dumps({"batch": batch, "rank": rank}))
                record[name] = [facts_of(path / name)]
                self.store.put(f"{path.name}/{name}", (path / name).read_bytes())
        for number, path in enumerate(paths):
            write_folder_record(path, {name: record[name] for name in self.part(number)}, record, MACHINES[number])
        self.store.put(f"{paths[0].name}/{RECORD}", (paths[0] / "all_machines.json").read_bytes())

    def agree(self, folders: list[Path], store: Store | None) -> list[Any]:
        for folder in folders:
            folder.mkdir(exist_ok=True)
        self.store.fetched.clear()
        return self.threads.run(lambda number: agree_on_newest(store, folders[number], MACHINES[number], self.strategy))

    def downloaded(self, folder: Path) -> set[str]:
        return {name.split("/", 1)[1] for name in self.store.fetched[str(folder)]}


@pytest.fixture(params=["fsdp", "deepspeed"])
def job(request, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0.0,))
    return Job(tmp_path, monkeypatch, request.param)


@pytest.mark.parametrize(
    "names", ["first second", "second first", "first new", "new second", "second new", "new other"]
)
def test_each_machine_downloads_only_what_its_folder_lacks(job, tmp_path, names):
    job.write(3)
    job.write(6)
    folders = [tmp_path / name for name in names.split()]
    before = [{name for name in job.part(n) if (folders[n] / "ba00000006" / name).exists()} for n in (0, 1)]
    assert job.agree(folders, job.store) == [set(), set()]
    for number, folder in enumerate(folders):
        assert job.downloaded(folder) == job.part(number) - before[number]
        newest = list_checkpoints(folder)[0]
        assert newest.name == "ba00000006"
        assert corruption_of(newest) is None
        for name in job.part(number):
            assert (newest / name).read_bytes() == job.store.objects[f"ba00000006/{name}"]


def test_without_a_store_exchanged_machines_are_an_error_that_says_so(job):
    job.write(3)
    for error in job.agree(job.folders[::-1], None):
        assert isinstance(error, UserError)
        for number, folder in enumerate(job.folders[::-1]):
            name = f"{SHARDS}/{job.of_rank.format(number)}"
            assert f"machine {number}, {folder}: its {name} is missing or corrupted" in str(error)
        assert "give each machine the --node_rank that it had" in str(error)


def test_files_without_a_record_in_the_store_count_where_a_machine_lost_its_own(job):
    """Machine 1 has uploaded its part and is replaced; machine 0 was killed before it had uploaded."""
    job.write(3)
    job.write(6)
    for name in (RECORD, *(job.part(0) - job.part(1))):
        del job.store.objects[f"ba00000006/{name}"]
    shutil.rmtree(job.folders[1])
    assert job.agree(job.folders, job.store) == [set(), set()]
    assert [list_checkpoints(folder)[0].name for folder in job.folders] == ["ba00000006"] * 2
    assert job.downloaded(job.folders[1]) == job.part(1)
    assert corruption_of(job.folders[1] / "ba00000006") is None


def test_a_checkpoint_of_which_a_part_is_lost_is_set_aside(job):
    job.write(3)
    job.write(6)
    for name in (RECORD, *(job.part(1) - job.part(0))):
        del job.store.objects[f"ba00000006/{name}"]
    shutil.rmtree(job.folders[1])
    assert job.agree(job.folders, job.store) == [set(), set()]
    assert [[path.name for path in list_checkpoints(folder)] for folder in job.folders] == [["ba00000003"]] * 2
    assert (job.folders[0] / "ba00000006.incomplete").exists()
    assert job.downloaded(job.folders[0]) == set()


def test_a_file_that_is_corrupted_in_the_store_is_named_and_the_checkpoint_before_it_used(job):
    job.write(3)
    job.write(6)
    shutil.rmtree(job.folders[1])
    name = f"ba00000006/{SHARDS}/{job.of_rank.format(1)}"
    job.store.objects[name] = job.store.objects[name][::-1]
    assert job.agree(job.folders, job.store) == [{"ba00000006"}] * 2
    assert [[path.name for path in list_checkpoints(folder)] for folder in job.folders] == [["ba00000003"]] * 2
