"""`best/` is always the best by the metric that its header names, also if `save_best_on` changes between two starts."""

import logging

import pytest
import torch

from tests.shop import metrics_of
from ugt_composer.checkpoint.portable import load_portable, read_facts
from ugt_composer.checkpoint.run_checkpoints import read_checkpoint, write_checkpoint
from ugt_composer.checkpoint.save_folder import list_checkpoints
from ugt_composer.config.load import load_config
from ugt_composer.losses.unified import UnifiedLoss
from ugt_composer.metrics.torch_metrics import evaluation_metrics
from ugt_composer.training.best_model import Best, Criterion, criterion_of, is_better
from ugt_composer.training.build import build_trainer

EVERY = ("eval_interval=1ba", "save_interval=1ba", "max_duration=9ba", "save_num_checkpoints_to_keep=1")


@pytest.fixture
def trained(stage_config, tmp_path):
    """trained(batches, *overrides) → the save folder after the run was continued for that many batches."""

    def train(batches: int, *overrides: str):
        trainer = build_trainer(stage_config(tmp_path / "run", 1, None, *EVERY, *overrides))
        if batches:
            trainer.fit(duration=f"{batches}ba")
        trainer.close()
        return tmp_path / "run"

    return train


def values(folder, metric: str) -> dict[int, float]:
    return {line["batch"]: line[f"metrics/eval/{metric}"] for line in metrics_of(folder)}


@pytest.mark.parametrize(("before", "after", "choose"), [("ndcg@5", "loss", min), ("loss", "ndcg@5", max)])
def test_another_metric_selects_afresh(trained, caplog, before, after, choose):
    folder = trained(3, f"save_best_on={before}")
    assert read_facts(folder / "best")["save_best_on"] == before
    with caplog.at_level(logging.WARNING):
        trained(4, f"save_best_on={after}")
    assert f"save_best_on was {before}, now it is {after}" in caplog.text
    facts, seen = read_facts(folder / "best"), {k: v for k, v in values(folder, after).items() if k > 3}
    assert int(facts["batch"]) == choose(seen, key=lambda batch: seen[batch])
    assert f"best {before}" not in facts
    assert float(facts[f"best {after}"]) == pytest.approx(choose(seen.values()), rel=1e-5)
    assert facts["save_best_on"] == after
    assert facts["higher_is_better"] == str(choose is max).lower()
    caplog.clear()
    trained(1, f"save_best_on={after}")
    assert "cannot be compared" not in caplog.text


def test_until_the_next_evaluation_the_model_stays_with_the_metric_that_selected_it(trained):
    trained(3, "save_best_on=ndcg@5")
    folder = trained(2, "save_best_on=loss", "eval_interval=100ba")  # fit evaluates at its end
    assert "best loss" in read_facts(folder / "best")


def test_a_run_killed_between_the_change_and_the_evaluation_still_selects_afresh(trained, stage_config):
    folder = trained(3, "save_best_on=ndcg@5")
    trainer = build_trainer(stage_config(folder, 1, None, *EVERY, "save_best_on=loss"))
    trainer.checkpoints.save(trainer.state)
    trainer.close()
    assert read_facts(folder / "best")["save_best_on"] == "ndcg@5"
    trained(1, "save_best_on=loss")
    assert read_facts(folder / "best")["batch"] == "4"


def test_without_a_metric_best_becomes_the_latest(trained, caplog):
    trained(3, "save_best_on=loss")
    with caplog.at_level(logging.WARNING):
        folder = trained(2, "save_best_on=null")
    assert "save_best_on was loss, now it is null" in caplog.text
    best, latest = (load_portable(folder / name)[0].state_dict() for name in ("best", "latest"))
    assert all(torch.equal(value, latest[name]) for name, value in best.items())
    assert not any(name.startswith("best ") for name in read_facts(folder / "best"))


def test_a_finished_run_keeps_its_model_and_says_so(trained, caplog):
    folder = trained(9, "save_best_on=ndcg@5")
    before = read_facts(folder / "best")
    with caplog.at_level(logging.WARNING):
        trained(0, "save_best_on=loss")
    assert "it stays as it is, because the run is finished" in caplog.text
    assert read_facts(folder / "best") == before


def criterion(metric: str, *overrides: str, rows: str = "a", retired: str = "none") -> Criterion:
    config = load_config(overrides=[f"save_best_on={metric}", *overrides])
    loss = UnifiedLoss(**config.loss.arguments)
    metrics = evaluation_metrics(loss.means, loss.evaluation_losses(), config.evaluation.k_values, 10)
    return criterion_of(config, metric, metrics[metric], [rows], "catalogue", retired)


@pytest.mark.parametrize(
    ("metric", "change", "message"),
    [
        ("ndcg@5", "evaluation.exclude_seen=true", "evaluation.exclude_seen was false, now it is true"),
        ("ndcg@5", "evaluation.beam_width=60", "evaluation.beam_width was 50, now it is 60"),
        ("ndcg@5", "evaluation.item_score_weight=0", None),
        ("ndcg@5", "evaluation.k_values=[5,10]", None),
        ("mrr", "evaluation.k_values=[5,10]", "the largest of evaluation.k_values was 50, now it is 10"),
        ("loss", "evaluation.beam_width=60", None),
        ("loss", "loss.label_smoothing=0.1", "loss.label_smoothing was 0.0, now it is 0.1"),
        ("preference_accuracy", "evaluation.beam_width=60", None),
    ],
)
def test_settings_that_change_what_the_metric_measures_select_afresh(metric, change, message):
    assert criterion(metric, change).change_from(criterion(metric)) == message


def test_other_evaluation_rows_select_afresh():
    assert criterion("loss", rows="b").change_from(criterion("loss")) == "data.eval was a, now it is b"


def test_items_that_are_retired_between_starts_select_afresh_by_a_ranking_metric():
    message = "retired items was none, now it is 3 (a)"
    assert criterion("ndcg@5", retired="3 (a)").change_from(criterion("ndcg@5")) == message
    assert criterion("loss", retired="3 (a)").change_from(criterion("loss")) is None


def test_items_that_are_retired_between_starts_select_afresh_by_a_loss_with_a_group():
    group = ["loss.preference_objective=group", "loss.lambda_preference=1", "loss.reference_from=best"]
    group += ["model.level_softmax=catalogue", "data.catalogue=catalogue.jsonl"]
    message = "retired items was none, now it is 3 (a)"
    assert criterion("loss", *group, retired="3 (a)").change_from(criterion("loss", *group)) == message


@pytest.mark.parametrize("after", ["ndcg@5", "loss"])
def test_a_checkpoint_that_records_no_name_has_the_one_of_its_config(trained, caplog, after):
    folder = trained(2, "save_best_on=ndcg@5")
    (path,) = list_checkpoints(folder)
    content = read_checkpoint(path)
    state = content["state"]["callbacks"]
    own = next(one for name, one in state if "Checkpoints" in name) if isinstance(state, list) else state["Checkpoints"]
    own["best_value"] = own.pop("best")["value"]
    write_checkpoint(path, content)
    with caplog.at_level(logging.WARNING):
        trained(2, f"save_best_on={after}")
    assert ("save_best_on was ndcg@5, now it is loss" in caplog.text) == (after == "loss")
    choose = {"ndcg@5": max, "loss": min}[after]
    seen = {batch: value for batch, value in values(folder, after).items() if batch > (2 if after == "loss" else 0)}
    assert float(read_facts(folder / "best")[f"best {after}"]) == pytest.approx(choose(seen.values()), rel=1e-5)


def test_a_metric_of_the_users_with_other_arguments_or_another_direction_is_another_metric():
    before = Criterion("Own", True, {"evaluation.metrics.mine.Own": '{"k": 3}'})
    other = Criterion("Own", True, {"evaluation.metrics.mine.Own": '{"k": 4}'})
    assert before.change_from(before) is None
    assert other.change_from(before) == 'evaluation.metrics.mine.Own was {"k": 3}, now it is {"k": 4}'
    lower = Criterion("Own", False, before.settings)
    assert lower.change_from(before) == "Own was better when higher, now it is better when lower"
    assert Best.from_state(Best(0.5, before).state_dict()) == Best(0.5, before)


def test_nan_is_never_better():
    assert is_better(0.1, None, True)
    assert not is_better(float("nan"), None, True)
    assert is_better(0.2, 0.1, True)
    assert not is_better(0.2, 0.1, False)
