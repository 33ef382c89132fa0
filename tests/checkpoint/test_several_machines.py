"""Sharded checkpoints of two machines, with a save folder each or one in common, in an S3 store on loopback."""

import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.checkpoint.conftest import content_of
from tests.parallelism.test_nodes import COMPOSER, come_to_batch, free_port, node, ranks_of
from tests.shop import ROOT, comparable, metrics_of, stage_arguments
from tests.spark.cluster import wait_until
from tests.storage.s3_server import Proxy, environment
from ugt_composer.checkpoint import uploads as uploads_module
from ugt_composer.checkpoint.machines import ONE_MACHINE, Machines
from ugt_composer.checkpoint.remote import fetch_newest
from ugt_composer.checkpoint.run_checkpoints import SHARDED_KEYS, SHARDS, STATE, corruption_of
from ugt_composer.checkpoint.save_folder import list_checkpoints
from ugt_composer.checkpoint.sharded import write_folder_record
from ugt_composer.checkpoint.uploads import Uploads
from ugt_composer.errors import EXIT_PREEMPTED
from ugt_composer.storage.record import RECORD, Record, facts_of
from ugt_composer.storage.s3 import Store, StoreError

SEPARATE = [Machines(number, 2, (number,), True) for number in (0, 1)]
SHARED = [Machines(number, 2, (0, 1), False) for number in (0, 1)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(uploads_module, "POLL", 0.05)


def write_parts(folders: list[Path], machines: list[Machines], batch: int) -> None:
    """A checkpoint of two files of each machine and `state.pt`, in one folder or in one of each machine."""
    record: Record = {}
    here: dict[Path, list[str]] = {}
    for number, folder in enumerate(folders):
        path = folder / f"ba{batch:08d}"
        (path / SHARDS).mkdir(parents=True, exist_ok=True)
        names = [f"{SHARDS}/{number}-{n}.bin" for n in range(2)]
        for name in names:
            (path / name).write_bytes(f"{batch} {name}".encode() * 100)
        if number == 0:
            torch.save(content_of(batch, SHARDED_KEYS), path / STATE)
            names.append(STATE)
        record |= {name: [facts_of(path / name)] for name in names}
        here.setdefault(path, []).extend(names)
    for number, path in enumerate(here):
        write_folder_record(path, {name: record[name] for name in here[path]}, record, machines[number])


def uploads_of(folders: list[Path], url: str, machines: list[Machines], keep: int = 3) -> list[Uploads]:
    return [Uploads(Store(url), folder, keep, set(), one) for folder, one in zip(folders, machines, strict=True)]


def comes_to_wait(first: Uploads) -> None:
    deadline = time.monotonic() + 60
    while "machine 1 has not uploaded all of its files" not in first.missing():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not first.wait(0)


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    paths = [tmp_path / "machine-0", tmp_path / "machine-1"]
    for path in paths:
        path.mkdir()
    return paths


@pytest.fixture
def fresh(tmp_path) -> Path:
    (tmp_path / "fresh").mkdir()
    return tmp_path / "fresh"


@pytest.fixture
def put_names(monkeypatch) -> list[str]:
    """The names of the objects that are written, in their order."""
    names: list[str] = []
    put = Store.put
    monkeypatch.setattr(Store, "put", lambda self, name, source: (names.append(name), put(self, name, source)))
    return names


def test_the_record_comes_when_all_machines_have_uploaded_their_files(folders, fresh, url):
    write_parts(folders, SEPARATE, 1)
    first, second = uploads_of(folders, url, SEPARATE)
    first.send()
    comes_to_wait(first)
    assert f"ba00000001/{RECORD}" not in Store(url).list()
    fetch_newest(Store(url), fresh)
    assert not list_checkpoints(fresh)
    second.send()
    assert second.wait(60)
    assert first.wait(60)
    fetch_newest(Store(url), fresh)
    assert corruption_of(fresh / "ba00000001") is None
    for folder in folders:
        files = [p.relative_to(folder) for p in folder.glob(f"*/{SHARDS}/*")]
        assert len(files) == 2
        assert all((folder / file).read_bytes() == (fresh / file).read_bytes() for file in files)


def test_machines_with_one_folder_upload_each_file_once(folders, url, put_names):
    write_parts([folders[0], folders[0]], SHARED, 1)
    both = uploads_of([folders[0], folders[0]], url, SHARED)
    for one in both:
        one.send()
    assert all(one.wait(60) for one in both)
    files = [f"ba00000001/{p.relative_to(folders[0] / 'ba00000001')}" for p in folders[0].rglob("*") if p.is_file()]
    assert sorted(put_names) == sorted([*files, "ba00000001/uploaded-by-1.json"])
    assert len(files) == 6
    put_names.clear()
    for one in uploads_of([folders[0], folders[0]], url, SHARED):  # as new processes
        one.send()
        assert one.wait(60)
    assert not put_names


def test_a_machine_that_fails_keeps_the_others_from_nothing_but_the_record(folders, fresh, url, monkeypatch, caplog):
    """A later save is uploaded, and completed when the machine can upload again."""
    put = Store.put

    def fails(self, name, source):
        if "/1-" in name:
            raise StoreError("refused")
        put(self, name, source)

    monkeypatch.setattr(Store, "put", fails)
    write_parts(folders, SEPARATE, 1)
    first, second = uploads_of(folders, url, SEPARATE)
    first.send()
    second.send()
    assert not second.wait(60)
    while not caplog.text:  # the thread logs after it has woken up those who wait
        time.sleep(0.01)
    assert "does not have ba00000001 (refused); it is in the save folder, and the next save tries again" in caplog.text
    write_parts(folders, SEPARATE, 2)
    first.send()
    comes_to_wait(first)
    uploaded = {f"ba0000000{n}/{SHARDS}/0-0.bin" for n in (1, 2)}
    wait_until(lambda: uploaded <= Store(url).list().keys(), "the files of both saves are uploaded")
    first.stop_waiting()  # as at the end of a run
    assert not first.wait(60)
    assert first.failure == "machine 1 has not uploaded all of its files"
    fetch_newest(Store(url), fresh)
    assert not list_checkpoints(fresh)
    monkeypatch.setattr(Store, "put", put)
    for one in (first, second):
        one.send()
    assert second.wait(60)
    assert first.wait(60)
    assert {f"ba0000000{n}/{RECORD}" for n in (1, 2)} <= Store(url).list().keys()


def test_a_report_of_an_earlier_version_does_not_count(folders, url):
    """A run that was killed during the upload writes the checkpoint of this batch again, with other bytes."""
    write_parts(folders, SEPARATE, 1)
    second = uploads_of(folders, url, SEPARATE)[1]
    second.send()
    assert second.wait(60)
    (folders[0] / "ba00000001" / SHARDS / "0-0.bin").write_bytes(b"other")
    write_parts(folders, SEPARATE, 2)  # only to have a second checkpoint
    name, path = f"{SHARDS}/0-0.bin", folders[0] / "ba00000001"
    from ugt_composer.checkpoint.run_checkpoints import ALL_MACHINES
    from ugt_composer.storage.record import read_record

    complete = (read_record(path / ALL_MACHINES) or {}) | {name: [facts_of(path / name)]}
    for number, folder in enumerate(folders):
        here = {n: f for n, f in complete.items() if (folder / "ba00000001" / n).exists()}
        write_folder_record(folder / "ba00000001", here, complete, SEPARATE[number])
    first, second = uploads_of(folders, url, SEPARATE)
    first.send()
    comes_to_wait(first)
    assert f"ba00000001/{RECORD}" not in Store(url).list()
    second.send()
    assert second.wait(60)
    assert first.wait(60)


def upload_two_and_keep_one(folders, url) -> None:
    """Checkpoints of batches 1 and 2, of machines with separate folders."""
    both = uploads_of(folders, url, SEPARATE, keep=1)
    for batch in (1, 2):
        write_parts(folders, SEPARATE, batch)
        for one in both:
            one.send()
        assert all(one.wait(60) for one in both)


def test_rotation_in_the_store_includes_the_files_of_all_machines(folders, url):
    upload_two_and_keep_one(folders, url)
    assert {name.split("/")[0] for name in Store(url).list()} == {"ba00000002"}


def test_no_file_is_uploaded_again_while_another_machine_is_late(folders, url, put_names):
    first, second = uploads_of(folders, url, SEPARATE)
    for batch in (1, 2, 3):
        write_parts(folders, SEPARATE, batch)
        first.send()
        wait_until(lambda batch=batch: f"ba0000000{batch}/{STATE}" in Store(url).list(), "machine 0 has uploaded")
    second.send()
    assert second.wait(60)
    assert first.wait(60)
    assert len(put_names) == len(set(put_names)) == 3 * (2 * 2 + len([STATE, RECORD, "uploaded-by-1.json"]))


def test_a_process_that_ends_uploads_only_the_newest_after_the_one_under_way(folders, url, monkeypatch):
    """What is written after the signal is bounded by two checkpoints, whatever the folder holds."""
    for batch in (1, 2, 3):
        write_parts(folders, SEPARATE, batch)
    names: list[str] = []
    put, is_open = Store.put, threading.Event()

    def slow(self, name, source):
        names.append(name)
        is_open.wait(60)
        put(self, name, source)

    monkeypatch.setattr(Store, "put", slow)
    first, second = uploads_of(folders, url, SEPARATE)
    for one in (first, second):
        one.send()
    wait_until(lambda: len(names) == 5, "both machines upload their files of the first checkpoint")
    write_parts(folders, SEPARATE, 4)
    for one in (first, second):
        one.send(newest_only=True)
    is_open.set()
    assert first.wait(60)
    assert second.wait(60)
    assert {name.split("/")[0] for name in names} == {"ba00000001", "ba00000004"}
    assert len(names) == len(set(names)) == 2 * (2 * 2 + len([STATE, RECORD, "uploaded-by-1.json"]))
    for one in (first, second):  # of the next start, or of a process that did not end
        one.send()
    assert second.wait(60)
    assert first.wait(60)
    assert {f"ba0000000{n}/{RECORD}" for n in (2, 3, 4)} <= Store(url).list().keys()


def test_an_older_checkpoint_that_a_machine_has_deleted_is_no_failure(folders, url, caplog):
    """Rotation deletes a checkpoint before a slow machine has uploaded it; another machine keeps it for its upload."""
    for batch in (1, 2):
        write_parts(folders, SEPARATE, batch)
    shutil.rmtree(folders[1] / "ba00000001")
    first, second = uploads_of(folders, url, SEPARATE)
    for one in (first, second):
        one.send()
    assert second.wait(60)
    comes_to_wait(first)
    first.stop_waiting()
    assert first.wait(60)
    assert {n for n in Store(url).list() if n.endswith(RECORD)} == {f"ba00000002/{RECORD}"}
    assert "ba00000001 stays incomplete (machine 1 has not uploaded all of its files); there is a newer" in caplog.text


def test_other_files_of_a_checkpoint_in_the_store_leave_no_record_until_they_are_complete(tmp_path, url, monkeypatch):
    write_parts([tmp_path], [ONE_MACHINE], 1)
    uploads_of([tmp_path], url, [ONE_MACHINE])[0].finish()
    path = tmp_path / "ba00000001"
    (path / SHARDS / "0-0.bin").write_bytes(b"other")
    names = (f"{SHARDS}/0-0.bin", f"{SHARDS}/0-1.bin", STATE)
    write_folder_record(path, {name: [facts_of(path / name)] for name in names}, {}, ONE_MACHINE)
    has_record: list[bool] = []
    put = Store.put

    def watched(self, name, source):
        has_record.append(f"ba00000001/{RECORD}" in self.list())
        put(self, name, source)

    monkeypatch.setattr(Store, "put", watched)
    uploads_of([tmp_path], url, [ONE_MACHINE])[0].finish()
    assert has_record == [False] * 4
    assert f"ba00000001/{RECORD}" in Store(url).list()


def test_a_store_that_refuses_to_delete_gets_the_newer_checkpoints(folders, url, monkeypatch, caplog):
    def refuses(self, names):
        raise StoreError("deletion is refused")

    monkeypatch.setattr(Store, "delete", refuses)
    upload_two_and_keep_one(folders, url)
    assert "deletion is refused; checkpoints that need not be kept are deleted after the next save" in caplog.text


# Two launchers as two machines.

EXACT = (
    "model.dropout=0",
    "eval_interval=1000ba",
    "parallelism.strategy=fsdp",
    "checkpoint.sharded=true",
    "save_num_checkpoints_to_keep=2",
    "dist_timeout=60",
)
CONSTANT = ("scheduler.name=constant", "scheduler.t_warmup=0%", "save_interval=3ba")  # max_duration may change


def start(number: int, port: int, s3_port: int, arguments: list[str]) -> subprocess.Popen:
    command = [str(word) for word in (COMPOSER, *node(number, port), ROOT / "train.py", *arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(s3_port), text=True, stdout=pipe, stderr=subprocess.STDOUT
    )


def outputs(jobs: list[subprocess.Popen], seconds: float = 300) -> list[str]:
    try:
        return [job.communicate(timeout=seconds)[0] for job in jobs]
    finally:
        for job in jobs:
            if job.poll() is None:
                job.kill()


@pytest.fixture
def job(shop, tmp_path, url, s3_port):
    """job(folders, *overrides, ports=…) → two launchers, one for each folder, on two machines."""

    def begin(folders: list[str], *overrides: str, ports: tuple[int, int] = (s3_port, s3_port)):
        port = free_port()
        remote = (f"checkpoint.remote={url}", *EXACT, *overrides)
        arguments = [[*stage_arguments(shop, tmp_path / folder, 1), *remote] for folder in folders]
        return [start(number, port, ports[number], arguments[number]) for number in (0, 1)]

    return begin


def trained(folder: Path) -> list[dict]:
    """Without the evaluations, which each start adds at its end."""
    return [{key: value for key, value in line.items() if "eval" not in key} for line in comparable(folder)]


def succeed(jobs: list[subprocess.Popen]) -> None:
    said = outputs(jobs)
    assert [one.returncode for one in jobs] == [0, 0], said


@pytest.mark.slow
@pytest.mark.timeout(900)  # several starts of two launchers
@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_either_machine_resumes_from_the_store_or_its_own_files(shop, tmp_path, url, job, strategy):
    """As one run: with the machines' numbers exchanged, with one new machine, and with two."""
    own = (*CONSTANT, f"parallelism.strategy={strategy}")
    succeed(job(["a", "b"], *own, "max_duration=3ba"))
    for folder, part in (("a", {STATE, "all_machines.json", SHARDS}), ("b", {"all_machines.json", SHARDS})):
        assert {path.name for path in (tmp_path / folder / "ba00000003").iterdir()} == part | {RECORD}
    assert not (tmp_path / "b" / "metrics.jsonl").exists()
    for names, end in ((["b", "a"], 6), (["a", "new"], 9), (["c", "d"], 12)):
        succeed(job(names, *own, f"max_duration={end}ba"))
    assert {"ba00000009", "ba00000012"} == {n.split("/")[0] for n in Store(url).list() if n.startswith("ba")}
    for folder in ("c", "d"):
        assert [path.name for path in list_checkpoints(tmp_path / folder)] == ["ba00000012", "ba00000009"]
    succeed(job(["e", "f"], *own, "checkpoint.remote=null", "max_duration=12ba"))
    assert trained(tmp_path / "c") == trained(tmp_path / "e")


def store_comes_to_have(url: str, name: str, jobs: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 100
    while name not in Store(url).list():
        assert all(one.poll() is None for one in jobs), outputs(jobs)
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(900)  # several starts of two launchers
def test_a_machine_that_is_killed_during_the_upload_leaves_the_checkpoint_before(tmp_path, url, job, s3_port):
    succeed(job(["a", "b"], *CONSTANT, "max_duration=3ba"))
    slow = Proxy(s3_port)
    later = ("save_interval=15ba", "max_duration=15ba")
    jobs = job(["a", "b"], *CONSTANT, *later, ports=(s3_port, slow.port))
    come_to_batch(4, tmp_path / "a" / "metrics.jsonl", jobs)
    slow.delay = 1000.0
    store_comes_to_have(url, f"ba00000015/{SHARDS}/__0_0.distcp", jobs)
    os.kill(ranks_of(jobs[1])[0], signal.SIGKILL)
    said = outputs(jobs, 90)
    assert all(one.returncode not in (0, EXIT_PREEMPTED) for one in jobs), said
    assert f"ba00000015/{RECORD}" not in Store(url).list()
    jobs = job(["c", "d"], *CONSTANT, "max_duration=4ba")
    said = outputs(jobs)
    assert [one.returncode for one in jobs] == [0, 0], said
    assert "resumes after batch 3" in said[0]
    slow.close()


@pytest.mark.slow
@pytest.mark.timeout(900)  # several starts of two launchers
def test_a_preempted_run_uploads_within_the_grace_or_says_what_is_missing(tmp_path, url, job, s3_port):
    """Resumed from the folders, and then from the store on empty machines, it is as one run."""
    long = (*CONSTANT[:-1], "save_interval=100000ba", "max_duration=100000ba")
    slow = Proxy(s3_port)
    slow.delay = 1000.0
    for port, grace in ((slow.port, 12), (s3_port, 100)):
        begun = len(metrics_of(tmp_path / "a")) if (tmp_path / "a").exists() else 0
        jobs = job(["a", "b"], *long, f"preemption.grace={grace}", ports=(s3_port, port))
        come_to_batch(begun + 3, tmp_path / "a" / "metrics.jsonl", jobs)
        requests = len(slow.requests)
        jobs[1].send_signal(signal.SIGTERM)
        said = outputs(jobs)
        assert [one.returncode for one in jobs] == [EXIT_PREEMPTED] * 2, said
        # The end did not wait for an answer: a request is repeated after READ_TIMEOUT, which is longer than the grace.
        assert len(slow.requests) - requests <= 1
        newest = list_checkpoints(tmp_path / "a")[0].name
        is_complete = f"{newest}/{RECORD}" in Store(url).list()
        if port == s3_port:
            assert is_complete
            assert "does not have" not in said[0]
        else:
            assert not is_complete
            assert f"does not have {newest} (machine 1 has not uploaded all of its files)" in said[0]
    slow.close()
    end = f"max_duration={metrics_of(tmp_path / 'a')[-1]['batch'] + 2}ba"
    succeed(job(["c", "d"], *long, end))
    succeed(job(["e", "f"], *long, end, "checkpoint.remote=null"))
    assert trained(tmp_path / "c") == trained(tmp_path / "e")
