"""Rows read through the loaders: valid data gives every row, corrupted data an error, in any kind of reader."""

import multiprocessing
import os
import re
import signal
import time
from multiprocessing.sharedctypes import RawValue
from pathlib import Path

import pytest
import torch
from streaming.base.batching import generate_work
from streaming.base.world import World

from tests.data.conftest import CORRUPTIONS, ROWS, flip_byte
from ugt_composer.config.schema import StreamConfig
from ugt_composer.data.evaluation_dataset import EvaluationDataset
from ugt_composer.data.remote_folder import fetch_descriptions
from ugt_composer.data.streaming_patches import RowDataset, training_streams
from ugt_composer.errors import UserError
from ugt_composer.training.loaders import RowLoader, begin_worker

SHARD = "shard.00003.mds"
TRAIN, EVAL = "data.train", "data.eval"


@pytest.fixture
def loader():
    """loader(key, local, workers=0, remote=None, …) → a loader of batches of eight. Its workers end with the test."""
    made = []

    def make(key, local, workers=0, remote=None, timeout=60.0, **arguments) -> RowLoader:
        stream = StreamConfig(local=str(local), remote=None if remote is None else str(remote))
        fetch_descriptions(stream)
        if key == TRAIN:
            fixed = {"batch_size": 8, "shuffle": True, "shuffle_seed": 1, "num_canonical_nodes": 4}
            dataset = RowDataset(streams=training_streams([stream]), **{**fixed, **arguments})
        else:
            dataset = EvaluationDataset([stream], 0, 1)
        made.append(
            RowLoader(dataset, key, workers, timeout, batch_size=8, persistent_workers=key == TRAIN and workers > 0)
        )
        return made[-1]

    yield make
    for batches in made:
        if batches._iterator is not None:
            batches._iterator._shutdown_workers()  # type: ignore[attr-defined]
        if isinstance(batches.dataset, RowDataset):
            batches.dataset.leave_iteration()


def rows(batches) -> list[int]:
    return [int(row) for batch in batches for row in batch["row_ids"][batch["row_mask"]]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("key", [TRAIN, EVAL])
@pytest.mark.parametrize("options", [(), ("--compression", "zstd"), ("--hashes", "none")])
def test_every_row_of_valid_data_is_read_in_each_epoch(loader, data_folder, key, workers, options):
    batches = loader(key, data_folder(*options), workers)
    for _ in range(2):
        assert sorted(rows(batches)) == list(range(ROWS))


def streamings(dataset: RowDataset, workers: int, epoch: int, done: int) -> list[int]:
    """The rows in the order in which Streaming's own code gives them to the batches of a loader."""
    ids = generate_work("random", dataset, World(1, 1, max(workers, 1), 0), epoch, done)[0, 0]
    return [int(row) for row in ids.transpose(1, 0, 2).flatten() if row >= 0]


OTHERS = [{}, {"shuffle": False}, {"shuffle_algo": "py1s"}, {"batching_method": "per_stream"}]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_rows_are_in_streamings_order(loader, data_folder, workers, options):
    arguments = {"shuffle_block_size": 50, **options}
    batches = loader(TRAIN, data_folder(), workers, **arguments)
    for epoch in range(2):
        found = rows(batches)
        if options.get("batching_method") is None:
            assert found == streamings(batches.dataset, workers, epoch, 0)
        assert len(set(found)) == len(found) >= ROWS - 8


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumes_in_an_epoch_without_skipping_its_draws_again(loader, data_folder, workers, monkeypatch):
    folder = data_folder()
    batches = loader(TRAIN, folder, workers, shuffle_block_size=50)
    rows(batches)
    first = list(zip(range(5), batches, strict=False))
    state = batches.dataset.state_dict(40, from_beginning=True)
    assert (state["epoch"], len(first)) == (1, 5)
    for workers_now in (0, 2 - workers // 2):
        resumed = loader(TRAIN, folder, workers_now, shuffle_block_size=50)
        resumed.dataset.load_state_dict(state)
        with monkeypatch.context() as patch:
            patch.setattr("ugt_composer.data.streaming_patches.make_marks", None)
            found = rows(resumed)
        assert found == streamings(resumed.dataset, workers_now, 1, 40)
        assert resumed.dataset.state_dict(0, from_beginning=True)["order_marks"] == state["order_marks"]
        if not workers_now:  # workers keep the patch
            assert rows(resumed) == streamings(resumed.dataset, workers_now, 2, 0)


def test_a_position_without_marks_or_with_others_is_resumed_too(loader, data_folder):
    folder = data_folder()
    batches = loader(TRAIN, folder, shuffle_block_size=50)
    rows(batches)
    state = batches.dataset.state_dict(40, from_beginning=True)
    expected = streamings(batches.dataset, 0, 0, 40)
    marks = state.pop("order_marks")
    for more in ({}, {"order_marks": marks.replace("a", "b", 1)}, {"order_marks": "{}"}, {"order_marks": "x" * 70_000}):
        resumed = loader(TRAIN, folder, shuffle_block_size=50)
        resumed.dataset.load_state_dict({**state, **more})
        assert rows(resumed) == expected


def test_shards_without_room_in_a_block_are_a_warning(loader, data_folder, caplog):
    next(iter(loader(TRAIN, data_folder(), shuffle_block_size=8).dataset))
    assert "shuffle_block_size is 8, but a shard has" in caplog.text


@pytest.mark.parametrize("key", [TRAIN, EVAL])
def test_ids_are_found_in_their_shards(loader, data_folder, key):
    dataset = loader(key, data_folder()).dataset
    if key == TRAIN:
        found = [dataset[at] for at in range(ROWS)]
        assert [row.row_id for row in found] == list(range(ROWS))
        read = {row.row_id: row.data for row in dataset}
        assert [row.data for row in found] == [read[at] for at in range(ROWS)]
    else:
        folder = dataset.folders[0]
        assert [folder[at] for at in range(len(folder))] == [row.data for row in dataset]
        with pytest.raises(IndexError):
            folder[ROWS]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("key", [TRAIN, EVAL])
@pytest.mark.parametrize("damage", CORRUPTIONS)
def test_a_corrupted_shard_ends_reading_with_one_sentence(loader, data_folder, key, damage, workers):
    folder = data_folder()
    batches = loader(key, folder, workers)
    CORRUPTIONS[damage](folder / SHARD)
    with pytest.raises(UserError) as error:
        list(batches)
    sentence = str(error.value)
    assert sentence.startswith(f"{folder / SHARD}: ")
    assert sentence.endswith("; convert or copy the data again")
    assert "\n" not in sentence
    with pytest.raises(UserError):  # again, if the caller continues after the error
        list(batches)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("key", [TRAIN, EVAL])
@pytest.mark.parametrize("damage", CORRUPTIONS)
def test_a_corrupted_shard_of_a_cache_is_fetched_again(loader, converted, tmp_path, key, damage, workers):
    list(loader(key, tmp_path / "cache", remote=converted()))
    CORRUPTIONS[damage](tmp_path / "cache" / SHARD)
    batches = loader(key, tmp_path / "cache", workers, converted())
    assert sorted(rows(batches)) == list(range(ROWS))
    assert (tmp_path / "cache" / SHARD).read_bytes() == (converted() / SHARD).read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("key", [TRAIN, EVAL])
def test_a_shard_corrupted_in_the_store_ends_reading(loader, data_folder, tmp_path, key, workers):
    remote = data_folder()
    flip_byte(remote / SHARD)
    with pytest.raises(UserError, match=rf"{remote}/{SHARD}: has the xxh64"):
        list(loader(key, tmp_path / "cache", workers, remote))


@pytest.mark.parametrize("key", [TRAIN, EVAL])
def test_a_shard_removed_during_reading_is_fetched_again_or_reported(loader, converted, data_folder, tmp_path, key):
    for local, remote in ((tmp_path / "cache", converted()), (data_folder(), None)):
        batches = loader(key, local, remote=remote)
        assert sorted(rows(batches)) == list(range(ROWS))
        (local / SHARD).unlink()
        if remote is not None:
            assert sorted(rows(batches)) == list(range(ROWS))
        else:
            assert sorted(rows(batches)) == list(range(ROWS))  # it is open
            with pytest.raises(UserError, match=f"{SHARD}: is missing"):
                list(loader(key, local))


@pytest.mark.parametrize("key", [TRAIN, EVAL])
def test_a_shard_is_hashed_once_for_all_workers_and_epochs(loader, data_folder, key, monkeypatch, tmp_path):
    from ugt_composer.data import integrity

    folder, log = data_folder(), tmp_path / "log"
    real = integrity.file_hash

    def counted(algorithm, path):
        with log.open("a") as file:
            file.write(path.name + "\n")
        return real(algorithm, path)

    batches = loader(key, folder, 2)
    monkeypatch.setattr(integrity, "file_hash", counted)
    for _ in range(3):
        list(batches)
    hashed = log.read_text().split()
    assert set(hashed) == {path.name for path in folder.glob("shard.*")}
    # Two workers and their threads may all hash the same shard once.
    assert max(hashed.count(name) for name in hashed) <= 4
    list(batches)
    assert log.read_text().split() == hashed


@pytest.mark.parametrize("damage", [None, "flipped"])
def test_a_small_cache_gives_every_row_and_the_right_byte_count(loader, converted, tmp_path, damage, monkeypatch):
    evict, evictions = RowDataset._evict_shard, RawValue("i", 0)

    def counted(dataset, shard_id):
        evictions.value += 1  # under the cache's lock
        evict(dataset, shard_id)

    monkeypatch.setattr(RowDataset, "_evict_shard", counted)
    folder = tmp_path / "cache"
    batches = loader(TRAIN, folder, 2, converted(), cache_limit="24kb", predownload=8)
    assert sorted(rows(batches)) == list(range(ROWS))
    assert evictions.value > 0
    if damage is not None:
        CORRUPTIONS[damage](next(folder.glob("shard.*")))
        batches = loader(TRAIN, folder, 2, converted(), cache_limit="24kb", predownload=8)
    assert sorted(rows(batches)) == list(range(ROWS))
    sizes = [path.stat().st_size for path in (*folder.glob("shard.*"), folder / "index.json")]
    assert batches.dataset.cache_usage == sum(sizes)


def test_a_second_iteration_ends_the_first_with_an_error(loader, data_folder):
    dataset = loader(TRAIN, data_folder()).dataset
    first = iter(dataset)
    next(first)
    next(iter(dataset))
    with pytest.raises(RuntimeError, match="a second iteration"):
        list(first)


def in_a_child(action) -> str:
    """Runs an action in a forked process and returns its output, so that errors do not affect later tests."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action()
        except Exception as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        return file.read()


@pytest.mark.parametrize("key", [TRAIN, EVAL])
def test_a_killed_worker_ends_the_reading_and_is_named(loader, data_folder, key):
    folder = data_folder()

    def read_and_kill() -> None:
        batches = loader(key, folder, 2, timeout=30.0)
        for _ in batches:
            worker = multiprocessing.active_children()[0]
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()

    started = time.monotonic()
    assert re.match(r"RunError: .*DataLoader worker \(pid.*(Killed|exited)", in_a_child(read_and_kill))
    assert time.monotonic() - started < 20


class StuckDataset(torch.utils.data.IterableDataset):
    def __init__(self, seconds):
        self.seconds = seconds

    def __iter__(self):
        time.sleep(self.seconds)
        yield 0


def test_a_stuck_worker_is_reported():
    batches = RowLoader(StuckDataset(2), TRAIN, 1, 1.0, batch_size=1)
    with pytest.raises(RuntimeError, match=r"data\.train: DataLoader timed out after 1.* seconds; a worker"):
        list(batches)


class SlowDataset(RowDataset):
    def __iter__(self):
        for number, row in enumerate(super().__iter__()):
            if number % 8 == 0:
                time.sleep(2.0)
            yield row


def test_the_first_batch_may_take_longer(data_folder):
    streams = training_streams([StreamConfig(local=str(data_folder()))])
    dataset = SlowDataset(streams=streams, batch_size=8, num_canonical_nodes=4)
    batches = iter(RowLoader(dataset, TRAIN, 1, 1.0, start_timeout=30.0, batch_size=8, prefetch_factor=1))
    assert len(next(batches)["row_ids"]) == 8
    with pytest.raises(RuntimeError, match=r"DataLoader timed out after 1.* seconds"):
        next(batches)
    dataset.leave_iteration()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_of_a_killed_rank_always_end():
    reader, writer = os.pipe()
    rank = os.fork()
    if rank == 0:
        batches = iter(torch.utils.data.DataLoader(StuckDataset(60), num_workers=1, worker_init_fn=begin_worker))
        os.write(writer, str(batches._workers[0].pid).encode())  # type: ignore[attr-defined]
        time.sleep(60)
        os._exit(0)
    worker = int(os.read(reader, 100))
    time.sleep(0.5)
    assert is_running(worker)
    os.kill(rank, signal.SIGKILL)
    os.waitpid(rank, 0)
    for _ in range(100):
        if not is_running(worker):
            break
        time.sleep(0.1)
    assert not is_running(worker)
