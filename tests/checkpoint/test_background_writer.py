"""Checkpoints are written in the background, with the state of the moment at which the save began."""

import errno
import threading

import pytest
import torch
from composer import Callback

from tests.shop import comparable
from ugt_composer.checkpoint.background_writer import Writer
from ugt_composer.checkpoint.run_checkpoints import read_checkpoint
from ugt_composer.checkpoint.save_folder import list_checkpoints
from ugt_composer.errors import RunError
from ugt_composer.training.build import build_trainer
from ugt_composer.training.callbacks import checkpoints


class Snapshots(Callback):
    """Keeps the weights after each batch, and blocks the writer until three batches after the save."""

    def __init__(self, folder, may_write):
        self.folder, self.may_write = folder, may_write
        self.weights, self.written = {}, {}

    def batch_end(self, state, logger):
        batch = state.timestamp.batch.value
        self.weights[batch] = {name: value.clone() for name, value in state.model.state_dict().items()}
        self.written[batch] = [path.name for path in list_checkpoints(self.folder)]
        if batch == 6:
            self.may_write.set()


def test_training_continues_while_a_checkpoint_is_written(stage_config, tmp_path, monkeypatch):
    may_write, write = threading.Event(), checkpoints.write_checkpoint

    def slow(path, content):
        assert may_write.wait(60)
        write(path, content)

    monkeypatch.setattr(checkpoints, "write_checkpoint", slow)
    more = ("save_interval=3ba", "max_duration=7ba", "eval_interval=100ba")
    trainer = build_trainer(stage_config(tmp_path / "run", 1, None, *more))
    watch = Snapshots(tmp_path / "run", may_write)
    trainer.state.callbacks.append(watch)
    trainer.train()
    trainer.close()
    assert watch.written[5] == watch.written[6] == []
    for path, batch in zip(list_checkpoints(tmp_path / "run"), (7, 6, 3), strict=True):
        content = read_checkpoint(path)
        assert content["state"]["timestamp"]["Timestamp"]["batch"] == batch
        for name, value in watch.weights[batch].items():
            assert torch.equal(content["model"][name], value), name
        assert content["optimizer"]["groups"][0]["lr"] > 0


def test_a_checkpoint_written_in_the_background_resumes_bit_for_bit(stage_config, tmp_path):
    more = ("save_interval=3ba", "max_duration=7ba", "model.dropout=0.2")
    for name in ("whole", "parts"):
        trainer = build_trainer(stage_config(tmp_path / name, 1, None, *more))
        trainer.train()
        trainer.close()
    for path in list_checkpoints(tmp_path / "parts")[:-1]:
        path.unlink()
    trainer = build_trainer(stage_config(tmp_path / "parts", 1, None, *more))
    assert trainer.state.timestamp.batch.value == 3
    trainer.train()
    trainer.close()
    assert comparable(tmp_path / "parts") == comparable(tmp_path / "whole")


def test_a_folder_that_cannot_be_written_ends_the_run_soon(stage_config, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_checkpoint", full)
    trainer = build_trainer(stage_config(tmp_path, 1, None, "save_interval=2ba", "eval_interval=100ba"))
    with pytest.raises(RunError, match="No space left on device"):
        trainer.train()
    assert trainer.state.timestamp.batch.value <= 4
    trainer.until_closed.close()


def test_a_failure_is_kept_and_raised_once(tmp_path):
    writer = Writer(tmp_path)
    writer.finish()  # nothing was started

    def fail():
        raise OSError(errno.EROFS, "Read-only file system")

    writer.begin(fail)
    writer.wait()
    with pytest.raises(RunError, match="Read-only file system"):
        writer.check()
    with pytest.raises(RunError, match="Read-only file system"):
        writer.finish()
    writer.check()
    writer.begin(lambda: (tmp_path / "file").write_text("done"))
    writer.finish()
    assert (tmp_path / "file").read_text() == "done"
