"""A run that was stopped resumes as if it had not been stopped."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.shop import ROOT, comparable, metrics_of, stage_arguments, without_catalogue
from ugt_composer.checkpoint.run_checkpoints import newest_checkpoint, read_checkpoint
from ugt_composer.checkpoint.save_folder import list_checkpoints
from ugt_composer.config.load import load_config
from ugt_composer.errors import EXIT_PREEMPTED, UserError
from ugt_composer.training.build import build_trainer
from ugt_composer.training.callbacks.metrics_file import MetricsFile

DROPOUT = ("model.dropout=0.2", "data.train.num_workers=1")


@pytest.fixture(scope="module")
def whole(shop, stages, tmp_path_factory) -> list[dict]:
    """The metrics of an uninterrupted run of stage 3 with DROPOUT."""
    out = tmp_path_factory.mktemp("whole")
    path, *rest = stage_arguments(shop, out, 3, stages / "stage2" / "best")
    trainer = build_trainer(load_config(path, overrides=[*rest, *DROPOUT]))
    trainer.train()
    trainer.close()
    return comparable(out)


@pytest.mark.parametrize("stopped_after", [4, 7, 10])  # mid-epoch, at an epoch's end, in the second epoch
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(whole, stages, stage_config, tmp_path, stopped_after):
    previous = stages / "stage2" / "best"
    first = build_trainer(stage_config(tmp_path / "parts", 3, previous, *DROPOUT))
    first.fit(duration=f"{stopped_after}ba")
    first.close()
    second = build_trainer(stage_config(tmp_path / "parts", 3, previous, *DROPOUT))
    assert second.state.timestamp.batch.value == stopped_after
    second.train()
    second.close()
    # The first part evaluated at its own end as well.
    extra = {stopped_after} - set(range(0, 100, 5))
    lines = [
        {k: v for k, v in line.items() if not (line["batch"] in extra and k.startswith("metrics/eval"))}
        for line in comparable(tmp_path / "parts")
    ]
    assert lines == whole


def test_a_checkpoint_saved_and_loaded_manually_resumes_the_same(stage_config, tmp_path):
    trainer = build_trainer(stage_config(tmp_path / "a", 1, None, *DROPOUT))
    trainer.fit(duration="4ba")
    path = trainer.save_checkpoint(str(tmp_path / "by_hand.pt"))
    trainer.train()
    trainer.close()
    other = build_trainer(stage_config(tmp_path / "b", 1, None, *DROPOUT))
    other.load_checkpoint(path)
    other.train()
    other.close()
    wanted = [line for line in comparable(tmp_path / "a") if line["batch"] > 4]
    assert comparable(tmp_path / "b") == wanted


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGUSR1))]
)
def test_a_preempted_run_saves_exits_with_75_and_resumes(shop, tmp_path, number):
    # SIGKILL needs no test here: it leaves less behind than a preemption signal.
    slow = ["max_duration=200ba", "save_interval=1000ba", "eval_interval=1000ba", "data.train.num_workers=1"]
    command = [sys.executable, str(ROOT / "train.py"), *stage_arguments(shop, tmp_path / "run", 1), *slow]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    record = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (record.exists() and len(record.read_text().splitlines()) >= 3):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal or a scheduler does it: to the data workers too
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_PREEMPTED, output
    assert f"{tmp_path / 'run'}: a new run begins" in output
    assert "run the same command again" in output
    batch = metrics_of(tmp_path / "run")[-1]["batch"]
    assert newest_checkpoint(tmp_path / "run")[0].name == f"ba{batch:08d}.pt"


def test_a_finished_run_does_nothing(stages, stage_config):
    before = (stages / "stage1" / "metrics.jsonl").read_bytes()
    trainer = build_trainer(stage_config(stages / "stage1"))
    trainer.train()
    trainer.close()
    assert (stages / "stage1" / "metrics.jsonl").read_bytes() == before


@pytest.fixture
def three_checkpoints(stage_config, tmp_path):
    trainer = build_trainer(stage_config(tmp_path / "run"))
    trainer.train()
    trainer.close()
    paths = list_checkpoints(tmp_path / "run")
    assert len(paths) == 3
    return paths


def test_a_truncated_checkpoint_is_skipped(three_checkpoints, stage_config):
    newest, older, _ = three_checkpoints
    newest.write_bytes(newest.read_bytes()[:1000])
    trainer = build_trainer(stage_config(newest.parent))
    assert f"ba{trainer.state.timestamp.batch.value:08d}.pt" == older.name
    trainer.close()


def test_if_every_checkpoint_is_truncated_no_new_run_starts(three_checkpoints, stage_config):
    for path in three_checkpoints:
        path.write_bytes(b"torn")
    with pytest.raises(UserError, match="no checkpoint can be read") as error:
        build_trainer(stage_config(path.parent))
    assert all(path.name in str(error.value) for path in three_checkpoints)


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_checkpoint_is_executed(tmp_path, capsys):
    torch.save({"state": Malicious()}, tmp_path / "ba00000001.pt")
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / "ba00000001.pt")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=7", ["seed = 42", "now it is 7"]),
        ("global_train_batch_size=64", ["global_train_batch_size = 32", "now it is 64"]),
        ("model.d_ff=64", ["model.d_ff = 32", "now it is 64"]),
        ("loss.num_negatives=7", ["loss.num_negatives = 127", "now it is 7"]),
        ("data.train.shuffle=false", ["data.train.shuffle = True"]),
    ],
)
def test_a_run_cannot_resume_with_changed_fixed_keys(stages, stage_config, override, words):
    with pytest.raises(UserError) as error:
        build_trainer(stage_config(stages / "stage1", 1, None, override))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "resume_despite" not in str(error.value)


def test_a_run_cannot_resume_with_a_number_for_an_anchor_that_was_null(stages, stage_config):
    with pytest.raises(UserError, match=r"lambda_anchor = None, now it is 20\.0: the run cannot resume"):
        build_trainer(stage_config(stages / "stage3", 3, stages / "stage2/best", "loss.lambda_anchor=20"))


def test_a_null_anchor_and_the_number_that_it_stands_for_are_the_same_run(stages, stage_config):
    build_trainer(stage_config(stages / "stage3", 3, stages / "stage2/best", "loss.lambda_anchor=0.4")).close()
    with pytest.raises(UserError, match=r"lambda_anchor = None, now it is 0\.5: the run cannot resume"):
        build_trainer(stage_config(stages / "stage3", 3, stages / "stage2/best", "loss.lambda_anchor=0.5"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["optimizer.lr=1e-5"], "optimizer.lr = 0.01, now it is 1e-05"),
        (["loss.l1_weight=0.4", "loss.l2_weight=0.4"], "loss.l1_weight = 0.5, now it is 0.4"),
        (["scheduler.name=linear"], "scheduler.name = cosine, now it is linear"),
        (["max_grad_norm=3"], "max_grad_norm = 1.0, now it is 3.0"),
    ],
)
def test_a_change_is_refused_and_resume_despite_is_offered(stages, stage_config, changes, words):
    with pytest.raises(UserError, match=f"{words}.*to resume_despite") as error:
        build_trainer(stage_config(stages / "stage1", 1, None, *changes))
    assert f'add "{words.split()[0]}" to' in str(error.value)


def test_resume_despite_allows_a_change_and_logs_it(stages, stage_config, tmp_path):
    shutil.copytree(stages / "stage1", tmp_path / "run")
    changes = ("optimizer.lr=1e-3", "optimizer.weight_decay=0.5", "scheduler.min_lr_ratio=0.5", "max_duration=3ep")
    with pytest.raises(UserError, match=r"optimizer.lr = 0.01, now it is 0.001; .*add .* to resume_despite"):
        build_trainer(stage_config(tmp_path / "run", 1, None, *changes))
    despite = "resume_despite=[optimizer.lr,optimizer.weight_decay,scheduler]"
    changed = build_trainer(stage_config(tmp_path / "run", 1, None, *changes, despite))
    assert {group["weight_decay"] for group in changed.strategy.optimizer.param_groups} == {0.0, 0.5}
    changed.train()
    changed.close()
    fresh = build_trainer(stage_config(tmp_path / "fresh", 1, None, *changes))
    fresh.train()
    fresh.close()
    rate = "metrics/train/learning rate"
    rates, wanted = ([line[rate] for line in metrics_of(tmp_path / name)] for name in ("run", "fresh"))
    assert rates[14:] == pytest.approx(wanted[14:])
    assert rates[:14] != pytest.approx(wanted[:14])


def test_a_resumed_run_cannot_add_a_loss(stages, stage_config):
    despite = ("loss.lambda_contrastive=0.1", "resume_despite=[loss.lambda_contrastive]")
    with pytest.raises(UserError, match=r"lambda_contrastive = 0.0, now it is 0.1") as error:
        build_trainer(stage_config(stages / "stage1", 1, None, *despite))
    assert "set resume_despite" not in str(error.value)


def test_an_unknown_key_in_resume_despite_is_refused(stage_config, tmp_path):
    with pytest.raises(UserError, match=r"resume_despite names 'optimizer.lrr'; did you mean optimizer.lr\?"):
        stage_config(tmp_path, 1, None, "resume_despite=[optimizer.lrr]")


@pytest.mark.parametrize(
    ("name", "rule"),
    [("seed", "which must not change when a run resumes"), ("save_interval", "which may always change")],
)
def test_a_key_that_resume_despite_does_not_govern_is_refused(stage_config, tmp_path, name, rule):
    with pytest.raises(UserError, match=f"resume_despite names '{name}', {rule}"):
        stage_config(tmp_path, 1, None, f"resume_despite=[{name}]")


def test_a_run_does_not_resume_with_another_catalogue(stages, stage_config, tmp_path, shop):
    items = (shop / "catalogue.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "catalogue.jsonl").write_text("".join(items[:-1]))
    other = (f"data.catalogue={tmp_path / 'catalogue.jsonl'}", *without_catalogue(shop, tmp_path))
    with pytest.raises(UserError, match=r"data.catalogue = \w{12}, now it is \w{12}.*resume_despite"):
        build_trainer(stage_config(stages / "stage1", 1, None, *other))
    trainer = build_trainer(stage_config(stages / "stage1", 1, None, *other, "resume_despite=[data.catalogue]"))
    trainer.close()


@pytest.mark.parametrize("batch", [5, 12])  # with an evaluation; at the end of the run
def test_a_run_killed_after_a_checkpoint_writes_its_metrics_line_when_resumed(
    stage_config, tmp_path, monkeypatch, batch
):
    every = ("save_interval=1ba", "max_duration=12ba")
    whole = build_trainer(stage_config(tmp_path / "whole", 1, None, *every))
    whole.train()
    whole.close()

    class Killed(Exception):
        pass

    write = MetricsFile._write

    def write_until(self, values):
        if self.place["batch"] == batch:
            raise Killed
        write(self, values)

    first = build_trainer(stage_config(tmp_path / "parts", 1, None, *every))
    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "_write", write_until)
        with pytest.raises(Killed):
            first.train()
    first.close()
    assert newest_checkpoint(tmp_path / "parts")[0].name == f"ba{batch:08d}.pt"
    assert metrics_of(tmp_path / "parts")[-1]["batch"] == batch - 1
    for _ in range(2):  # the second run has nothing left to do
        second = build_trainer(stage_config(tmp_path / "parts", 1, None, *every))
        second.train()
        second.close()
    assert comparable(tmp_path / "parts") == comparable(tmp_path / "whole")


def test_a_run_of_lamb_resumes_bit_for_bit(stage_config, tmp_path):
    options = ("optimizer.name=lamb", "max_duration=6ba", "save_interval=3ba", "eval_interval=100ba")
    for name, durations in (("whole", ["6ba"]), ("parts", ["3ba", "3ba"])):
        for duration in durations:
            trainer = build_trainer(stage_config(tmp_path / name, 1, None, *options))
            trainer.fit(duration=duration)
            trainer.close()
    whole, parts = (read_checkpoint(list_checkpoints(tmp_path / name)[0]) for name in ("whole", "parts"))
    for name, values in whole["optimizer"]["moments"].items():
        assert values["step"].item() == 6
        for key, value in values.items():
            assert torch.equal(value, parts["optimizer"]["moments"][name][key])
    assert all(torch.equal(value, parts["model"][name]) for name, value in whole["model"].items())
    whole_losses, losses = (
        [line["loss/train/total"] for line in metrics_of(tmp_path / name)] for name in ("whole", "parts")
    )
    assert losses == whole_losses
    assert len(losses) == 6
