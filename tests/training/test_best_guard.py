"""`save_best_if`: `best/` never violates it, and a run ends when no evaluation fulfils it any more."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.shop import ROOT, comparable, metrics_of, stage_arguments
from ugt_composer.checkpoint.portable import load_portable, read_facts
from ugt_composer.checkpoint.save_folder import list_checkpoints
from ugt_composer.config.best_condition import parse_best_condition
from ugt_composer.errors import UserError
from ugt_composer.training.best_guard import BestGuard
from ugt_composer.training.best_model import Criterion
from ugt_composer.training.build import build_trainer

EVERY = ("eval_interval=1ba", "save_interval=2ba", "max_duration=8ba", "optimizer.lr=1e-3")
NEVER = ("save_best_on=preference_accuracy", "save_best_if=ndcg@10 >= 9 of the start")
ALWAYS = ("save_best_on=preference_accuracy", "save_best_if=ndcg@10 >= 0 of the start")


@pytest.fixture
def trained(stage_config, stages, tmp_path):
    """trained(folder, batches, *overrides) → a closed trainer of stage 3, after so many batches or at its end."""

    def train(folder: str, batches: int | None, *overrides: str):
        before = stages / "stage2/best"
        trainer = build_trainer(stage_config(tmp_path / folder, 3, before, *EVERY, *overrides))
        if batches is None:
            trainer.train()
        elif batches:
            trainer.fit(duration=f"{batches}ba")
        trainer.close()
        return trainer

    return train


def weights(folder):
    return load_portable(folder)[0].state_dict()


def equal(one, other) -> bool:
    one, other = weights(one), weights(other)
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_without_an_evaluation_that_fulfils_it_best_is_the_starts_model_and_the_run_ends(
    trained, tmp_path, stages, capsys
):
    trainer = trained("run", None, *NEVER)
    assert trainer.state.timestamp.batch.value == 3  # save_best_patience
    assert equal(tmp_path / "run/best", stages / "stage2/best")
    assert read_facts(tmp_path / "run/best")["batch"] == "0"
    assert [line["batch"] for line in metrics_of(tmp_path / "run")] == [0, 1, 2, 3]
    lines = capsys.readouterr().err
    assert "batch 1: preference_accuracy" in lines
    assert "limit +800 %: not kept, outside the limit" in lines
    assert "3 evaluations in a row did not fulfil save_best_if" in lines

    again = trained("run", None, *NEVER)
    assert again.is_finished
    assert "save_best_patience is 3" in again.ended_because
    assert again.state.timestamp.batch.value == 3
    assert len(metrics_of(tmp_path / "run")) == 4
    more_patience = trained("run", None, *NEVER, "save_best_patience=5")
    assert more_patience.state.timestamp.batch.value == 5


def test_best_is_the_best_of_those_that_fulfil_it(trained, tmp_path):
    trained("run", None, *ALWAYS)
    values = {line["batch"]: line["metrics/eval/preference_accuracy"] for line in metrics_of(tmp_path / "run")}
    assert list(values) == list(range(9))
    best = max(values, key=lambda batch: (values[batch], -batch))
    assert read_facts(tmp_path / "run/best")["batch"] == str(best)


def test_training_is_that_of_a_run_without_a_condition(trained, tmp_path):
    trained("run", None, *ALWAYS, "model.dropout=0.2")
    trained("plain", None, "save_best_on=preference_accuracy", "model.dropout=0.2")
    assert comparable(tmp_path / "run")[1:] == comparable(tmp_path / "plain")


@pytest.mark.parametrize("condition", [NEVER, pytest.param(ALWAYS, marks=pytest.mark.slow)])
def test_a_resumed_run_compares_with_the_same_start(trained, tmp_path, condition):
    whole = trained("whole", None, *condition, "save_best_patience=5")
    trained("parts", 1, *condition, "save_best_patience=5", "save_interval=9ba")
    for path in list_checkpoints(tmp_path / "parts"):  # as after a kill before the first save
        path.unlink()
    trained("parts", 3, *condition, "save_best_patience=5")
    parts = trained("parts", None, *condition, "save_best_patience=5")
    assert comparable(tmp_path / "parts") == comparable(tmp_path / "whole")
    assert read_facts(tmp_path / "parts/best") == read_facts(tmp_path / "whole/best")
    assert parts.checkpoints.guard.state_dict() == whole.checkpoints.guard.state_dict()


def test_a_run_that_began_without_it_resumes_without_it(trained, caplog, tmp_path):
    trained("run", 2, "save_best_on=loss")
    trained("run", None, *NEVER)
    assert "save_best_if has no effect in this run, which began without it" in caplog.text
    assert metrics_of(tmp_path / "run")[-1]["batch"] == 8


@pytest.mark.parametrize("override", ["save_best_on=null", "data.eval.streams=[]"])
def test_where_nothing_selects_the_best_a_warning_says_that_it_is_the_latest(trained, caplog, override):
    trained("run", 0, *NEVER, override)
    assert "save_best_if has no effect, because" in caplog.text


def test_without_rows_of_its_metric_a_condition_has_no_effect_and_a_warning_says_so(trained, shop, caplog):
    pairs = f"data.eval.streams=[{{local: {shop / 'preference_eval'}}}]"
    trained("run", 2, "save_best_on=loss", "save_best_if=ndcg@10 >= 9 of the start", pairs)
    assert "save_best_if has no effect, because ndcg@10 is computed from recommend rows" in caplog.text
    assert "did not fulfil" not in caplog.text


def test_a_start_measured_with_other_settings_is_refused(trained):
    trained("run", 2, *ALWAYS)
    with pytest.raises(UserError, match=r"cannot be compared any more .evaluation.exclude_seen was false, now it is"):
        trained("run", 1, *ALWAYS, "evaluation.exclude_seen=true")
    trained("run", 1, *ALWAYS[:1], "save_best_if=recall@5 >= 0.9 of the start")  # all metrics of the start are kept


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("ndcg@11 >= 0.97 of the start", "save_best_if is 'ndcg@11'; did you mean ndcg@10?"),
        ("ndcg@10 <= 0.97 of the start", "higher values of ndcg@10 are better; expected >="),
        ("ntp_loss >= 1", "lower values of ntp_loss are better; expected <="),
    ],
)
def test_a_metric_that_cannot_be_compared_is_refused(trained, condition, words):
    with pytest.raises(UserError) as error:
        trained("run", 0, "save_best_on=loss", f"save_best_if={condition}")
    assert words in str(error.value)


def test_only_evaluations_in_a_row_end_a_run():
    condition = parse_best_condition("m >= 0.9 of the start")
    guard = BestGuard(condition, Criterion("m", True, {}), {}, patience=2)
    assert guard.needs_start
    guard.begin({"m": 1.0, "other": float("nan")})
    assert guard.start.values == {"m": 1.0}
    ends = []
    for value in (0.8, 0.95, float("nan"), 0.89):
        guard.count(guard.allows({"m": value}))
        ends.append(guard.is_hopeless)
    assert ends == [False, False, False, True]
    other = BestGuard(condition, Criterion("m", True, {}), {}, patience=2)
    other.load_state_dict(guard.state_dict())
    assert other.is_hopeless
    assert other.start == guard.start
    assert not BestGuard(condition, patience=None).is_hopeless


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed"])
def test_two_ranks_end_at_the_same_batch_and_a_rerun_does_not_train(shop, stages, tmp_path, strategy):
    arguments = [
        *stage_arguments(shop, tmp_path / "run", 3, stages / "stage2/best"),
        *EVERY,
        *NEVER,
        "optimizer.lr=1e-2",
        f"parallelism.strategy={strategy}",
        "model.expert_capacity_factor=null",
        "model.dropout=0",
    ]
    launcher = [str(Path(sys.executable).parent / "composer"), "-n", "2", "--master_port", "29647"]
    command = [*launcher, str(ROOT / "train.py"), *arguments]
    for message in ("run: ends after batch 3", "run: ended after batch 3"):
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert len(re.findall(message, done.stderr)) == 1, done.stderr
        assert [line["batch"] for line in metrics_of(tmp_path / "run")] == [0, 1, 2, 3]
    assert equal(tmp_path / "run/best", stages / "stage2/best")


def test_a_metric_that_selects_best_and_limits_it_is_printed_once():
    guard = BestGuard(parse_best_condition("ndcg@10 >= 0.97 of the start"))
    guard.begin({"ndcg@10": 0.5})
    line = guard.comparison(5, "ndcg@10", {"ndcg@10": 0.6}, "kept as best/")
    assert line == "batch 5: ndcg@10 0.5000 → 0.6000 (+20.0 %), limit -3 %: kept as best/"
