"""Shared memory of data workers: what they need, in a check before the start and in the error of a worker."""

import os
from dataclasses import replace

import pytest
import torch
from streaming import StreamingDataLoader

from ugt_composer.data.collate import PackedRow, collate
from ugt_composer.data.evaluation_dataset import RowFolder
from ugt_composer.data.manifest import read_manifest
from ugt_composer.errors import RunError, UserError
from ugt_composer.training.build import build_trainer
from ugt_composer.training.dry_run import describe
from ugt_composer.training.worker_memory import MB, batch_bytes, check_shared_memory


@pytest.fixture
def shared_memory_of(monkeypatch):
    """shared_memory_of(size): /dev/shm has this many bytes, all free."""
    real = os.statvfs

    def set_size(size: int) -> None:
        facts = type("Facts", (), {"f_blocks": size, "f_bavail": size, "f_frsize": 1})
        monkeypatch.setattr(os, "statvfs", lambda path: facts if str(path) == "/dev/shm" else real(path))

    return set_size


@pytest.mark.parametrize("name", ["train", "preference"])
def test_the_estimate_is_near_the_size_of_real_batches(shop, name):
    rows = RowFolder(str(shop / name), None)
    batch = collate([PackedRow(number, rows[number]) for number in range(100)])
    real = sum(tensor.numel() * tensor.element_size() for tensor in batch.values() if isinstance(tensor, torch.Tensor))
    assert batch_bytes([read_manifest(shop / name)], 100) == pytest.approx(real, rel=0.05)


def test_what_batches_need_is_checked_before_the_start(shop, stage_config, tmp_path, shared_memory_of):
    config = stage_config(tmp_path / "run", 1, None, "data.train.num_workers=2")
    shared_memory_of(MB + 40_000)
    for start in (describe, build_trainer):
        with pytest.raises(UserError) as error:
            start(config)
        for part in ("/dev/shm", "has 1.0 MB", "4 batches of 0.0 MB", "data.train.num_workers is 2"):
            assert part in str(error.value)
        for part in ("docker run --shm-size=256m", "emptyDir: {medium: Memory, sizeLimit: 256Mi}", "lower num_workers"):
            assert part in str(error.value)
    shared_memory_of(MB + 200_000)
    describe(config)
    shared_memory_of(MB + 40_000)
    describe(stage_config(tmp_path / "run", 1))  # num_workers=0


def test_ranks_workers_and_rows_count(shop, stage_config, tmp_path, shared_memory_of, monkeypatch):
    (manifest,) = [read_manifest(shop / "train")]
    many = replace(manifest, rows=10**6)
    size = batch_bytes([many], 32)
    for workers in (1, 3):
        for ranks in (1, 2):
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
            monkeypatch.setenv("WORLD_SIZE", str(ranks))
            options = (f"data.train.num_workers={workers}", f"global_train_batch_size={32 * ranks}")
            config = stage_config(tmp_path, 1, None, *options)
            need = MB + max(2 * workers * ranks * size, 8 * 10**6)
            shared_memory_of(need)
            check_shared_memory(config, [many], [])
            shared_memory_of(need - 1)
            with pytest.raises(UserError, match="/dev/shm"):
                check_shared_memory(config, [many], [])
    large = stage_config(tmp_path, 1, None, "data.train.num_workers=0", "global_train_batch_size=64")
    shared_memory_of(MB + 8 * 10**6 - 1)
    with pytest.raises(UserError, match=r"training data needs .* the order of 1,000,000 rows") as error:
        check_shared_memory(large, [many], [])
    assert "num_workers" not in str(error.value)  # fewer workers would not help


def test_a_system_without_such_a_folder_has_no_limit(shop, stage_config, tmp_path):
    config = stage_config(tmp_path, 1, None, "data.train.num_workers=2")
    check_shared_memory(config, [read_manifest(shop / "train")], [], tmp_path / "none")


@pytest.mark.parametrize(
    "error",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "DataLoader worker (pid(s) 7) exited unexpectedly",
    ],
)
def test_a_worker_that_finds_it_full_is_explained(stage_config, tmp_path, shared_memory_of, monkeypatch, error):
    def fail(loader):
        raise RuntimeError(error)
        yield

    shared_memory_of(64 * MB)
    trainer = build_trainer(stage_config(tmp_path / "run"))
    monkeypatch.setattr(StreamingDataLoader, "__iter__", fail)
    with pytest.raises(RunError) as raised:
        trainer.train()
    trainer.close()
    message = str(raised.value)
    assert message.startswith("data.train: DataLoader worker (pid")
    for part in ("/dev/shm, the shared memory, has 64 MB", "--shm-size=256m", "emptyDir", "data.train.num_workers"):
        assert part in message
