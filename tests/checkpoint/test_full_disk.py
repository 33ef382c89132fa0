"""Disks that are full, read-only or gone. Real kernel errors come from /dev/full and a limit on file sizes."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.checkpoint.conftest import SmallShards, content_of
from tests.shop import ROOT, stage_arguments
from ugt_composer.checkpoint.portable import CONFIG, check_portable, save_portable
from ugt_composer.checkpoint.rank0_errors import save_on_rank_0
from ugt_composer.checkpoint.run_checkpoints import corruption_of, write_checkpoint
from ugt_composer.checkpoint.save_folder import checkpoint_path, list_checkpoints
from ugt_composer.checkpoint.sharded import write_sharded
from ugt_composer.config.schema import Config
from ugt_composer.errors import EXIT_ERROR, RunError
from ugt_composer.training.build import build_trainer


def test_a_full_disk_keeps_the_old_checkpoint_and_no_partial_one(tmp_path):
    path = checkpoint_path(tmp_path, 1)
    write_checkpoint(path, content_of(1))
    for place in (path, checkpoint_path(tmp_path, 2)):
        before = sorted(tmp_path.iterdir())
        place.with_name(place.name + ".tmp").symlink_to("/dev/full")
        with pytest.raises(OSError) as error:
            write_checkpoint(place, {**content_of(2), "model": torch.zeros(100_000)})
        assert error.value.errno == errno.ENOSPC
        assert sorted(tmp_path.iterdir()) == before
        assert corruption_of(path) is None


LIMITED = """
import resource, sys, torch
from ugt_composer.checkpoint.portable import save_portable
from ugt_composer.config.schema import Config
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save_portable(sys.argv[1], {"w": torch.ones(100_000)}, Config(), {})
except OSError as error:
    print(error)
"""


def test_a_file_that_cannot_grow_leaves_the_old_model(tmp_path):
    folder = tmp_path / "best"
    save_portable(folder, {"w": torch.zeros(9)}, Config(), {})
    before = {path: path.read_bytes() for path in folder.iterdir()}
    command = [sys.executable, "-c", LIMITED, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "File too large" in result.stdout
    (folder / f"{CONFIG}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError) as error:
        save_portable(folder, {"w": torch.ones(9)}, Config(), {})
    assert error.value.errno == errno.ENOSPC
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    check_portable(folder)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EDQUOT])
def test_one_sentence_names_the_folder_the_reason_and_the_newest_valid_checkpoint(tmp_path, number):
    write_checkpoint(checkpoint_path(tmp_path, 1), content_of(1))
    checkpoint_path(tmp_path, 2).write_bytes(b"bad")
    write_checkpoint(checkpoint_path(tmp_path, 3), content_of(3))
    checkpoint_path(tmp_path, 3).write_bytes(b"bad")

    def refuse() -> None:
        raise OSError(number, os.strerror(number), "some file")

    with pytest.raises(RunError) as error:
        save_on_rank_0(tmp_path, refuse)
    assert str(error.value).startswith(f"{tmp_path} cannot be written ({os.strerror(number)}): ")
    assert "its newest valid checkpoint is ba00000001.pt" in str(error.value)
    assert "\n" not in str(error.value)


class FullDisk(SmallShards):
    def __init__(self, error: BaseException):
        self.error = error

    def save_sharded(self, folder: Path) -> None:
        super().save_sharded(folder)
        raise self.error


def test_shards_that_cannot_be_written_leave_no_partial_files(tmp_path, sharded_content):
    from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

    write_sharded(checkpoint_path(tmp_path, 1, sharded=True), sharded_content, SmallShards())
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for error in (
        full,
        CheckpointException("write", {0: _wrap_exception(full)}),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ):
        with pytest.raises(RunError, match=r"cannot be written \(.*: its newest valid checkpoint is ba00000001;"):
            write_sharded(checkpoint_path(tmp_path, 2, sharded=True), sharded_content, FullDisk(error))
        assert [path.name for path in tmp_path.iterdir()] == ["ba00000001"]


def test_a_full_disk_ends_the_run_which_resumes_later(stage_config, tmp_path):
    trainer = build_trainer(stage_config(tmp_path))
    trainer.fit(duration="4ba")
    (tmp_path / "ba00000006.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"No space left on device\): its newest valid checkpoint is ba00000004\.pt"):
        trainer.train()
    trainer.close()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["ba00000004.pt", "ba00000003.pt"]
    assert not list(tmp_path.rglob("*.tmp"))
    again = build_trainer(stage_config(tmp_path))
    again.train()
    again.close()
    assert again.is_finished


# Noticed when a metrics line is written, or by a save.
@pytest.mark.parametrize("override", ["log_interval=1ba", "log_interval=100ba"])
def test_a_removed_save_folder_ends_the_run(stage_config, tmp_path, override):
    trainer = build_trainer(stage_config(tmp_path / "run", 1, None, override, "eval_interval=100ba"))
    trainer.fit(duration="1ba")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunError, match=r"run cannot be written .*: it contains no valid checkpoint"):
        trainer.train()
    trainer.close()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_ranks_end_with_1_and_one_sentence_when_files_cannot_grow(shop, tmp_path):
    composer = Path(sys.executable).parent / "composer"
    arguments = stage_arguments(shop, tmp_path / "run", 1)
    command = [composer, "-n", "2", "--master_port", "29641", ROOT / "train.py", *arguments, "eval_interval=100ba"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    limit = 200_000  # bytes: less than a checkpoint, more than anything else

    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    output = result.stdout + result.stderr
    assert result.returncode == EXIT_ERROR, output[-3000:]
    assert f"error: {tmp_path / 'run'} cannot be written (File too large): it contains no valid checkpoint" in output
    assert "Traceback" not in output
    assert not list((tmp_path / "run").rglob("*.tmp"))
