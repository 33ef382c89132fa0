"""A save that is killed before any one of its system calls loses nothing."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.checkpoint.conftest import content_of
from ugt_composer.checkpoint import portable
from ugt_composer.checkpoint.portable import CONFIG, WEIGHTS, check_portable, save_portable
from ugt_composer.checkpoint.run_checkpoints import clean, newest_checkpoint, write_checkpoint
from ugt_composer.checkpoint.save_folder import checkpoint_path
from ugt_composer.config.schema import Config
from ugt_composer.storage import record


class Killed(BaseException):
    pass


@pytest.fixture
def kill_before(monkeypatch):
    """kill_before(n): raises at the n-th replace, fsync or removal of a file, and at every one after it."""

    def arm(number: int) -> None:
        calls = 0

        def counted(real):
            def call(*arguments, **keywords):
                nonlocal calls
                calls += 1
                if calls >= number:  # a dead process cleans nothing up
                    raise Killed
                return real(*arguments, **keywords)

            return call

        monkeypatch.setattr(os, "replace", counted(os.replace))
        monkeypatch.setattr(os, "fsync", counted(os.fsync))
        monkeypatch.setattr(Path, "unlink", counted(Path.unlink))

    yield arm
    monkeypatch.undo()


STEPS = range(1, 12)


@pytest.mark.parametrize("number", STEPS)
@pytest.mark.parametrize("again", [False, True])
def test_a_killed_save_leaves_the_old_or_the_new_checkpoint(tmp_path, kill_before, monkeypatch, number, again):
    write_checkpoint(checkpoint_path(tmp_path, 1), content_of(1))
    new = checkpoint_path(tmp_path, 1 if again else 2)
    kill_before(number)
    with contextlib.suppress(Killed):
        write_checkpoint(new, content_of(2))
    monkeypatch.undo()
    clean(tmp_path)
    path, content = newest_checkpoint(tmp_path)
    assert content["state"]["batch"] in (1, 2)
    if new.exists() and not again:
        assert path == new
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("number", STEPS)
@pytest.mark.parametrize("has_record", [True, False])
def test_a_killed_save_never_invalidates_a_portable_model(tmp_path, kill_before, monkeypatch, number, has_record):
    folder = tmp_path / "latest"
    save_portable(folder, {"w": torch.zeros(9)}, Config(), {})
    if not has_record:  # written before there were records
        (folder / record.RECORD).unlink()
    kill_before(number)
    with contextlib.suppress(Killed):
        save_portable(folder, {"w": torch.ones(9)}, Config(seed=7), {})
    monkeypatch.undo()
    check_portable(folder)
    assert (folder / WEIGHTS).exists()
    assert (folder / CONFIG).exists()
    clean(tmp_path)
    check_portable(folder)
    save_portable(folder, {"w": torch.ones(9)}, Config(seed=7), {})
    check_portable(folder)
    assert len(record.read_record(folder / record.RECORD)[WEIGHTS]) == 1


def test_files_are_read_back_before_anything_is_replaced(tmp_path, monkeypatch):
    """With a disk that stores something else."""
    path = checkpoint_path(tmp_path, 1)
    write_checkpoint(path, content_of(1))
    folder = tmp_path / "best"
    save_portable(folder, {"w": torch.zeros(9)}, Config(), {})
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    real = os.fsync

    def lie(descriptor: int) -> None:
        real(descriptor)
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if name.endswith((".pt.tmp", ".safetensors.tmp")):
            with open(name, "r+b") as file:
                file.seek(-5, os.SEEK_END)
                file.write(b"!")

    monkeypatch.setattr(os, "fsync", lie)
    with pytest.raises(OSError, match="what was read back is not what was written"):
        write_checkpoint(path, content_of(2))
    with pytest.raises(OSError, match="what was read back is not what was written"):
        save_portable(folder, {"w": torch.ones(9)}, Config(), {})
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_copied_model_carries_its_record(tmp_path):
    save_portable(tmp_path / "best", {"w": torch.zeros(9)}, Config(), {})
    shutil.copytree(tmp_path / "best", tmp_path / "copy")
    check_portable(tmp_path / "copy")
    assert portable.RECORD in os.listdir(tmp_path / "copy")
