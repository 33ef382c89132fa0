"""`evaluation.metrics`: a user's own metric beside the built-in ones."""

import json
import sys

import pytest

from tests.shop import metrics_of
from ugt_composer.cli.main import main as ugt
from ugt_composer.config.load import load_config
from ugt_composer.errors import UserError
from ugt_composer.metrics.user_metrics import user_metrics
from ugt_composer.training.build import build_trainer
from ugt_composer.training.preflight import check_run

OWN = '''
import torch
from torchmetrics import Metric


class FirstIsRight(Metric):
    """How often one of the first `places` recommendations is the first target."""

    higher_is_better = True

    def __init__(self, places: int = 1):
        super().__init__()
        self.places = places
        self.add_state("hits", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, recommended, targets, target_mask, row_mask):
        counts = row_mask & target_mask[:, 0]
        hit = (recommended[:, : self.places] == targets[:, :1]).all(-1).any(-1)
        self.hits += (hit & counts).sum()
        self.rows += counts.sum()

    def compute(self):
        return self.hits / self.rows


class Undecided(FirstIsRight):
    higher_is_better = None


class mrr(FirstIsRight):  # noqa: N801
    pass


class OfPairs(FirstIsRight):
    def update(self, predictions, labels):
        pass


class OfPlaces(FirstIsRight):
    def compute(self):
        return torch.zeros(5)
'''


@pytest.fixture
def own_module(module_in_cwd) -> str:
    return module_in_cwd("own_metrics", OWN)


def test_a_users_metric_is_logged_and_selects_the_best_model(shop, stage_config, tmp_path, own_module, caplog):
    own = {f"{own_module}.FirstIsRight": {"places": 5}}
    overrides = [f"evaluation={json.dumps({'metrics': own})}", "save_best_on=FirstIsRight", "max_duration=10ba"]
    trainer = build_trainer(stage_config(tmp_path / "run", 1, None, *overrides))
    trainer.train()
    by_hand = trainer.evaluate()
    trainer.close()
    lines = [line for line in metrics_of(tmp_path / "run") if "metrics/eval/FirstIsRight" in line]
    values = [line["metrics/eval/FirstIsRight"] for line in lines]
    assert max(values) > 0
    # A row of the shop's evaluation has two targets; at most one of them is the first.
    assert all(line["metrics/eval/FirstIsRight"] <= line["metrics/eval/hit_rate@5"] for line in lines)
    assert by_hand["metrics/eval/FirstIsRight"] == values[-1]
    assert trainer.checkpoints.best.value == max(values)

    report = tmp_path / "report.json"
    options = ["--checkpoint", str(tmp_path / "run/latest"), "--data", str(shop / "eval"), "--json", str(report)]
    assert ugt(["evaluate", *options]) == 0
    assert json.loads(report.read_text())["metrics"]["FirstIsRight"] == pytest.approx(values[-1])

    # A model is evaluated where its metrics' module is not, too.
    (tmp_path / f"{own_module}.py").unlink()
    del sys.modules[own_module]
    assert ugt(["evaluate", *options]) == 0
    assert "FirstIsRight" not in json.loads(report.read_text())["metrics"]
    assert f"{own_module} cannot be imported" in caplog.text


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("FirstIsRigt", {}, r"evaluation\.metrics\.\S*FirstIsRigt: .*did you mean FirstIsRight\?"),
        ("FirstIsRight", {"place": 1}, r"FirstIsRight\.place is unknown; did you mean places\?"),
    ],
)
def test_a_mistake_is_named_with_the_nearest(own_module, name, arguments, message):
    config = load_config(overrides=[f"evaluation={json.dumps({'metrics': {f'{own_module}.{name}': arguments}})}"])
    with pytest.raises(UserError, match=message):
        check_run(config)


def test_a_name_without_a_module_is_a_mistake():
    with pytest.raises(UserError, match=r"evaluation\.metrics\.ndcg is unknown; expected an import path"):
        user_metrics({"ndcg": {}})


def test_two_metrics_of_one_name_are_a_mistake(own_module, tmp_path):
    (tmp_path / "other_metrics.py").write_text(OWN)
    with pytest.raises(UserError, match="two metrics would be logged as FirstIsRight"):
        user_metrics({f"{own_module}.FirstIsRight": {}, "other_metrics.FirstIsRight": {}})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mrr", r"metrics\.own_metrics_\w+\.mrr: mrr is a metric of every evaluation; expected another class name"),
        ("OfPairs", r"OfPairs: fails on a batch of one row: TypeError: .*positional arguments"),
        ("OfPlaces", r"OfPlaces: fails on a batch of one row: .*let compute return one number"),
    ],
)
def test_a_metric_that_cannot_be_evaluated_is_refused_before_training(
    stage_config, tmp_path, own_module, name, message
):
    own = f"evaluation={json.dumps({'metrics': {f'{own_module}.{name}': {}}})}"
    with pytest.raises(UserError, match=message):
        build_trainer(stage_config(tmp_path / "run", 1, None, own))
    assert not (tmp_path / "run").exists()


def test_best_on_a_metric_that_does_not_say_what_is_better_is_refused(stage_config, tmp_path, own_module):
    own = f"evaluation={json.dumps({'metrics': {f'{own_module}.Undecided': {}}})}"
    with pytest.raises(UserError, match=r"'Undecided', whose class does not set higher_is_better"):
        build_trainer(stage_config(tmp_path / "run", 1, None, own, "save_best_on=Undecided"))
