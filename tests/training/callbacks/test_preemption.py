"""Preemption signals during saves and evaluations."""

import os
import resource
import signal
import time

import pytest
from composer import Callback

from tests.shop import comparable
from ugt_composer.checkpoint.run_checkpoints import newest_checkpoint
from ugt_composer.checkpoint.save_folder import batch_of
from ugt_composer.errors import EXIT_PREEMPTED
from ugt_composer.job.signals import WarningSignals, warning
from ugt_composer.training.build import build_trainer
from ugt_composer.training.callbacks.checkpoints import Checkpoints

DROPOUT = ("model.dropout=0.2", "data.train.num_workers=1", "device_eval_batch_size=16")


class WarnIn(Callback):
    """Sends a signal to its own process at an event of a batch, at the time `at`."""

    def __init__(self, event: str, batch: int):
        self.event, self.batch, self.at = event, batch, 0.0

    def run_event(self, event, state, logger):
        if event.value == self.event and state.timestamp.batch.value == self.batch and warning.first_at is None:
            self.at = time.monotonic()
            os.kill(os.getpid(), signal.SIGTERM)
            while warning.first_at is None:
                time.sleep(0.01)


def preempt(config, event: str, batch: int, *before: Callback) -> None:
    trainer = build_trainer(config)
    trainer.state.callbacks[:] = [*before, *trainer.state.callbacks, WarnIn(event, batch)]
    with pytest.raises(SystemExit) as end:
        trainer.train()
    assert end.value.code == EXIT_PREEMPTED
    trainer.close()


class Crash(Callback):
    def batch_start(self, state, logger):
        raise ZeroDivisionError


@pytest.mark.parametrize("batch", [5, 7])  # within an epoch; at an epoch's end
def test_an_interrupted_evaluation_is_repeated_by_the_resumed_run(stage_config, tmp_path, batch):
    every = (*DROPOUT, f"eval_interval={batch}ba")
    whole = build_trainer(stage_config(tmp_path / "whole", 1, None, *every))
    whole.train()
    whole.close()
    preempt(stage_config(tmp_path / "parts", 1, None, *every), "eval_batch_start", batch)
    assert batch_of(newest_checkpoint(tmp_path / "parts")[0]) == batch
    assert comparable(tmp_path / "parts")[-1]["batch"] == batch - 1
    crashed = build_trainer(stage_config(tmp_path / "parts", 1, None, *every))
    crashed.state.callbacks.append(Crash())  # crashes after the evaluation and before the next save
    with pytest.raises(ZeroDivisionError):
        crashed.train()
    crashed.close()
    assert comparable(tmp_path / "parts")[-1]["batch"] == batch
    second = build_trainer(stage_config(tmp_path / "parts", 1, None, *every))
    second.train()
    second.close()
    assert comparable(tmp_path / "parts") == comparable(tmp_path / "whole")


class SlowSaves(Callback):
    """Makes the last save appear to have taken longer than the grace."""

    def batch_start(self, state, logger):
        checkpoints = next(c for c in state.callbacks if isinstance(c, Checkpoints))
        checkpoints.writer.wait()  # the save of an earlier batch sets save_seconds when it ends
        checkpoints.save_seconds = 60.0


def test_without_time_to_save_the_earlier_checkpoint_stays(stage_config, tmp_path, capsys):
    preempt(stage_config(tmp_path, 1, None, *DROPOUT), "batch_end", 4, SlowSaves())
    assert "too short for a save, the newest checkpoint is that of batch 3" in capsys.readouterr().out
    assert batch_of(newest_checkpoint(tmp_path)[0]) == 3


def test_a_signal_is_handled_in_a_process_with_many_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip(f"needs 4096 open files, the system allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    signals, many = WarningSignals(), [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        signals.listen()
        signals.training = True
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while signals.first_at is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert signals.first_at is not None
    finally:
        signals.stop()
        for descriptor in many:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_preempted_in_the_evaluation_of_the_start_a_run_begins_anew(stage_config, stages, tmp_path, capsys):
    options = ("save_best_on=loss", "save_best_if=ndcg@10 >= 0.9 of the start", "max_duration=3ba", *DROPOUT)

    def config(name: str):
        return stage_config(tmp_path / name, 3, stages / "stage2/best", *options)

    whole = build_trainer(config("whole"))
    whole.train()
    whole.close()
    preempt(config("parts"), "eval_batch_start", 0)
    assert "preempted: no batch was trained yet; run the same command again" in capsys.readouterr().out
    assert newest_checkpoint(tmp_path / "parts") is None
    again = build_trainer(config("parts"))
    again.train()
    again.close()
    assert comparable(tmp_path / "parts") == comparable(tmp_path / "whole")
