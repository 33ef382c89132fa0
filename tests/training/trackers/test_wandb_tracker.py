"""Lines of metrics.jsonl in W&B's offline files."""

import os
import subprocess

import pytest

from tests.spark.cluster import wait_until
from tests.training.trackers.tracked import WANDB, offline_folders, wandb_steps
from tests.training.trackers.wandb_server import wandb_server
from ugt_composer.config.schema import Config, LoggersConfig, WandbConfig
from ugt_composer.errors import RunError
from ugt_composer.training.trackers.offline_steps import BLOCK, newest_step, steps_of
from ugt_composer.training.trackers.wandb_tracker import WandbTracker


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    """tracked(lines, begins_with=()): logs as a process would, offline."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_DIR", raising=False)

    def log(lines, begins_with=(), is_finished=False):
        config = Config(save_folder=str(tmp_path), loggers=LoggersConfig(wandb=WandbConfig(project="p")))
        tracker = WandbTracker(config, config.loggers.wandb)
        tracker.begin("abc", begins_with, resumes=bool(begins_with), is_finished=is_finished)
        for line in lines:
            tracker.send(line)
        tracker.close(None, None)

    return log


def lines(first: int, last: int) -> list[dict]:
    return [{"batch": n, "epoch": 0, **{f"metrics/train/m{i}": n + i for i in range(40)}} for n in range(first, last)]


def test_a_killed_process_loses_what_w_and_b_had_not_written(tracked, tmp_path):
    """W&B writes blocks of 32 KiB. What is missing comes from metrics.jsonl, and what is there is not repeated."""
    tracked(lines(1, 31))
    [killed] = offline_folders(tmp_path)
    [file] = killed.glob("*.wandb")
    wait_until(lambda: steps_of(file)[-1:] == [30], "W&B has written its file")
    file.write_bytes(file.read_bytes()[:BLOCK])
    kept = [step for step, _ in wandb_steps(killed)]
    assert kept == list(range(1, kept[-1] + 1))
    assert kept[-1] < 25
    tracked(lines(26, 35), begins_with=lines(1, 26))
    assert [step for step, _ in wandb_steps(killed)] == kept
    assert file.stat().st_size < BLOCK  # without the incomplete record
    [resumed] = set(offline_folders(tmp_path)) - {killed}
    [file] = resumed.glob("*.wandb")
    wait_until(lambda: steps_of(file)[-1:] == [34], "W&B has written its file")
    assert kept + steps_of(file) == list(range(1, 35))


def test_the_newest_step_is_that_of_the_run_with_this_id(tracked, tmp_path):
    tracked(lines(1, 4))
    [folder] = offline_folders(tmp_path)
    [file] = folder.glob("*.wandb")
    wait_until(lambda: steps_of(file)[-1:] == [3], "W&B has written its file")
    empty = tmp_path / "wandb/offline-run-20300101_000000-abc/run-abc.wandb"
    empty.parent.mkdir()
    empty.write_bytes(file.read_bytes()[:7])
    assert newest_step(tmp_path / "wandb", "abc") == 3
    assert not empty.exists()
    assert newest_step(tmp_path / "wandb", "ab") == newest_step(tmp_path / "elsewhere", "abc") == -1


def test_a_finished_run_leaves_no_other_folder(tracked, tmp_path):
    tracked(lines(1, 4))
    tracked([], begins_with=lines(1, 4), is_finished=True)
    assert len(offline_folders(tmp_path)) == 1


def test_training_goes_on_without_w_and_b(tmp_path, caplog):
    class Lost:
        def log(self, values, step):
            raise ConnectionError("W&B's process is gone")

    config = Config(save_folder=str(tmp_path), loggers=LoggersConfig(wandb=WandbConfig(project="p")))
    tracker = WandbTracker(config, config.loggers.wandb)
    tracker.run = Lost()
    for line in lines(1, 4):
        tracker.send(line)
    tracker.close(None, None)
    assert caplog.text.count("W&B's process is gone; training continues without it") == 1


@pytest.mark.parametrize("resumes", [False, True])
def test_only_a_resumed_run_begins_without_w_and_b(tmp_path, monkeypatch, caplog, resumes):
    import wandb

    def init(**arguments):
        raise wandb.errors.CommError("no answer")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_MODE", "online")
    config = Config(save_folder=str(tmp_path), loggers=LoggersConfig(wandb=WandbConfig(project="p")))
    tracker = WandbTracker(config, config.loggers.wandb)
    if not resumes:
        with pytest.raises(RunError, match=r"^loggers\.wandb: no answer; WANDB_MODE=offline logs to files"):
            tracker.begin("abc", [], resumes, is_finished=False)
        return
    tracker.begin("abc", lines(1, 3), resumes, is_finished=False)
    tracker.send(lines(3, 4)[0])
    tracker.close(None, None)
    assert caplog.text.count("no answer; training continues without it") == 1


@pytest.mark.slow
def test_wandb_sync_joins_the_folders_of_a_killed_run(tracked, tmp_path):
    """The server is a stand-in; what is sent to it, and where in the run's history, is W&B's own doing."""
    tracked(lines(1, 31))
    [killed] = offline_folders(tmp_path)
    [file] = killed.glob("*.wandb")
    wait_until(lambda: steps_of(file)[-1:] == [30], "W&B has written its file")
    file.write_bytes(file.read_bytes()[:BLOCK])
    tracked(lines(26, 35), begins_with=lines(1, 26))
    [resumed] = set(offline_folders(tmp_path)) - {killed}
    [file] = resumed.glob("*.wandb")
    wait_until(lambda: steps_of(file)[-1:] == [34], "W&B has written its file")
    with wandb_server() as server:
        env = {**os.environ, "WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}
        env.pop("WANDB_SILENT")
        command = [WANDB, "sync", tmp_path / "wandb"]
        sync = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert "ERROR" not in sync.stderr
    assert list(server.history) == ["abc"], sync.stderr
    steps = [(row["_step"], row["metrics/train/m3"]) for row in server.history["abc"]]
    assert steps == [(step, step + 3) for step in range(1, 35)], sync.stderr
