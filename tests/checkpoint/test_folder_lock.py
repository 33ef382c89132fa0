"""A second run in the same save folder is refused; a dead run does not block it."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.shop import ROOT
from ugt_composer.checkpoint.folder_lock import LOCK, folder_lock
from ugt_composer.errors import EXIT_BAD_INPUT, UserError
from ugt_composer.training.build import build_trainer

HOLD = """
import os, sys, time
from ugt_composer.checkpoint.folder_lock import folder_lock
with folder_lock(sys.argv[1], patience=1):
    if len(sys.argv) > 2 and os.fork() == 0:  # a data worker, which outlives its killed parent for a while
        time.sleep(8)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, str(folder), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_until_the_first_is_dead(stage_config, ended, tmp_path, caplog):
    first = holder(tmp_path, "fork")
    words = f"save_folder {tmp_path} is in use by another run (pid {first.pid} on {socket.gethostname()})"
    with pytest.raises(UserError) as error, folder_lock(tmp_path, patience=0.2):
        pass
    assert words in str(error.value)
    second = stage_config(tmp_path, 1, None, "dist_timeout=2")
    result = ended(lambda: build_trainer(second))  # waits half the timeout first, in case the other run is about to end
    assert result.returncode == EXIT_BAD_INPUT
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert "waiting up to 1 s for it to end" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {LOCK}
    first.send_signal(signal.SIGKILL)
    first.wait()
    started = time.monotonic()
    with folder_lock(tmp_path, patience=3):
        assert time.monotonic() - started < 2  # the orphaned worker does not keep the lock
        first.stdout.close()


def test_a_second_run_in_the_same_process_must_close_the_first_trainer(tmp_path):
    with (
        folder_lock(tmp_path, patience=0),
        pytest.raises(UserError, match=f"pid {os.getpid()} .*close its trainer first"),
        folder_lock(tmp_path, patience=0),
    ):
        pass
    with folder_lock(tmp_path, patience=0):
        pass


def test_a_file_system_without_locks_logs_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with folder_lock(tmp_path, patience=0):
        pass
    assert "does not support locks (No locks available)" in caplog.text


def test_a_lock_file_without_an_owner_still_locks(tmp_path):
    with folder_lock(tmp_path, patience=0):
        (tmp_path / LOCK).write_text("{")
        with pytest.raises(UserError, match="process id unknown"), folder_lock(tmp_path, patience=0):
            pass


def test_closing_or_refusing_a_trainer_releases_the_lock(stages, stage_config):
    trainer = build_trainer(stage_config(stages / "stage1"))
    with pytest.raises(UserError, match="is in use"), folder_lock(stages / "stage1", patience=0):
        pass
    trainer.close()
    with pytest.raises(UserError, match="seed = 42"):
        build_trainer(stage_config(stages / "stage1", 1, None, "seed=7"))
    with folder_lock(stages / "stage1", patience=0):
        pass
