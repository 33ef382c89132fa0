"""Loggers of a run that was killed and resumed."""

import shutil

import pytest
from composer import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.shop import metrics_of
from ugt_composer.checkpoint.save_folder import list_checkpoints
from ugt_composer.training.build import build_trainer


def curves(folder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard" / "ugt"), size_guidance={"scalars": 0})
    events.Reload()
    names = [
        tag for tag in events.Tags()["scalars"] if tag.startswith(("loss/", "metrics/")) and "samples/s" not in tag
    ]
    # Event files of the same second, which only so small a run has, are read in the order of their names.
    return {tag: sorted((event.step, event.value) for event in events.Scalars(tag)) for tag in names}


def test_tensorboard_shows_each_step_once_after_a_kill(stage_config, tmp_path):
    options = ("loggers.tensorboard=true", "run_name=ugt", "save_interval=4ba", "max_duration=2ep")
    for name, parts in (("whole", 1), ("parts", 2)):
        for _ in range(parts):
            trainer = build_trainer(stage_config(tmp_path / name, 1, None, *options))
            trainer.train()
            trainer.close()
            if name == "parts":
                # As if killed some batches after the checkpoint of batch 8.
                for path in list_checkpoints(tmp_path / "parts")[:-2]:
                    path.unlink()
    whole, parts = curves(tmp_path / "whole"), curves(tmp_path / "parts")
    assert len(whole["metrics/train/grad_norm"]) == len(metrics_of(tmp_path / "whole"))
    assert parts == whole


class CopyAt(Callback):
    """Copies the folder at a checkpoint, as a kill would leave it."""

    def __init__(self, batch, source, target):
        self.batch, self.source, self.target = batch, source, target

    def batch_checkpoint(self, state, logger):
        if state.timestamp.batch.value == self.batch:
            shutil.copytree(self.source, self.target)


@pytest.mark.parametrize(
    ("rows", "absent", "present"),
    [
        ("eval", "preference_accuracy", "recall@10"),
        ("preference_eval", "recall@10", "preference_accuracy"),
    ],
)
def test_a_metric_that_no_row_counts_for_is_shown_by_no_logger(
    stage_config, stages, shop, tmp_path, capsys, rows, absent, present
):
    data = ("data.eval.streams=[]", f"data.eval.local={shop / rows}", "max_duration=2ba", "eval_interval=1ba")
    loggers = ("loggers.tensorboard=true", "loggers.console=true", "run_name=ugt")
    trainer = build_trainer(stage_config(tmp_path / "run", 3, stages / "stage2/best", *data, *loggers))
    trainer.train()
    trainer.close()
    shown = capsys.readouterr()
    console = shown.out + shown.err
    assert f"metrics/eval/{present}: " in console
    assert "nan" not in console.lower()
    for names in (curves(tmp_path / "run").keys(), metrics_of(tmp_path / "run")[-1].keys()):
        assert f"metrics/eval/{present}" in names
        assert f"metrics/eval/{absent}" not in names


def test_tensorboard_has_all_that_was_logged_before_a_checkpoint(stage_config, tmp_path):
    options = ("loggers.tensorboard=true", "run_name=ugt", "save_interval=4ba", "max_duration=6ba")
    trainer = build_trainer(stage_config(tmp_path / "run", 1, None, *options))
    trainer.state.callbacks.append(CopyAt(4, tmp_path / "run/tensorboard", tmp_path / "copy/tensorboard"))
    trainer.train()
    trainer.close()
    assert [step for step, _ in curves(tmp_path / "copy")["loss/train/total"]] == [1, 2, 3, 4]


def test_time_and_samples_add_up(stages, stage_config, tmp_path):
    shutil.copytree(stages / "stage1", tmp_path / "run")
    newest = list_checkpoints(tmp_path / "run")[0]
    whole = build_trainer(stage_config(tmp_path / "run"))
    samples, seconds = whole.state.timestamp.sample.value, whole.state.timestamp.total_wct
    whole.close()
    newest.unlink()
    trainer = build_trainer(stage_config(tmp_path / "run"))
    before = trainer.state.timestamp.total_wct
    trainer.train()
    trainer.close()
    assert trainer.state.timestamp.sample.value == samples
    assert trainer.state.timestamp.total_wct > before > seconds * 0.1
