"""Names of metrics in a config are checked before the run trains, in a dry run too."""

import json
import logging
import math

import pytest

from tests.shop import metrics_of
from ugt_composer.errors import UserError
from ugt_composer.training.build import build_trainer
from ugt_composer.training.dry_run import describe

ONLY_PAIRS = ("data.eval.streams=[{local: PLACE/preference_eval}]",)
NO_EVALUATION = ("data.eval.local=null", "data.eval.streams=[]")
ONLY_LISTS = ("data.eval.streams=[{local: PLACE/eval}]",)


@pytest.mark.parametrize(
    ("stage", "overrides", "words"),
    [
        (
            1,
            ["save_best_on=dpo_accuracy"],
            ["'dpo_accuracy', which is not computed, because loss.lambda_preference is"],
        ),
        (2, ["save_best_on=metrics/eval/dpo_loss"], ["not computed, because loss.lambda_preference is 0"]),
        (1, ["save_best_on=contrastive_u2i_acc"], ["not computed, because loss.lambda_contrastive is 0"]),
        (1, ["save_best_on=metrics/eval/recall@10"], ["expected recall@10, without metrics/eval/"]),
        (1, ["save_best_on=metrics/eval/recal@10"], ["did you mean recall@10?"]),
        (1, ["save_best_on=preference_accuracy", *ONLY_LISTS], ["from preference rows, but data.eval has none"]),
        (1, ["save_best_on=ndcg@5", *ONLY_PAIRS], ["from recommend rows, but data.eval has none"]),
        (3, ["save_best_on=dpo_accuracy", *ONLY_LISTS], ["from preference rows, but data.eval has none"]),
        (
            1,
            ["callbacks.early_stopper={monitor: metrics/eval/ndcg@10, dataloader_label: eval}"],
            ["callbacks.early_stopper.monitor is 'metrics/eval/ndcg@10'; expected ndcg@10, without metrics/eval/"],
        ),
        (1, ["save_best_if=ndcg@5 <= 1"], ["higher values of ndcg@5 are better; expected >="]),
        (
            1,
            ["callbacks.early_stopper={monitor: preference_accuracy, dataloader_label: eval}", *ONLY_LISTS],
            ["early_stopper.monitor names 'preference_accuracy', which is computed from preference rows, but"],
        ),
        (
            1,
            ["callbacks.threshold_stopper={monitor: ndcg@5, dataloader_label: train, threshold: 1}"],
            ["threshold_stopper.dataloader_label is 'train'; expected eval"],
        ),
        (
            1,
            ["callbacks.early_stopper={monitor: ndcg@5, dataloader_label: eval}", *NO_EVALUATION],
            ["early_stopper monitors 'ndcg@5' of the evaluations, but data.eval is empty"],
        ),
    ],
)
def test_a_metric_that_is_not_computed_is_refused_with_the_reason(
    stage_config, stages, shop, tmp_path, stage, overrides, words
):
    overrides = [word.replace("PLACE", str(shop)) for word in overrides]
    config = stage_config(tmp_path / "run", stage, stages / f"stage{stage - 1}" / "best", *overrides)
    for start in (describe, build_trainer):
        with pytest.raises(UserError) as error:
            start(config)
        assert all(word in str(error.value) for word in words), error.value


def test_a_dry_run_leaves_open_what_rows_that_are_not_here_decide(stage_config, tmp_path):
    remote = f"data.eval.streams=[{{local: {tmp_path}/eval, remote: s3://bucket/eval}}]"
    assert "# steps" in describe(stage_config(tmp_path / "run", 1, None, "save_best_on=preference_accuracy", remote))


def test_a_dry_run_says_that_a_condition_has_no_effect(stage_config, stages, shop, tmp_path):
    overrides = (ONLY_PAIRS[0].replace("PLACE", str(shop)), "save_best_on=dpo_loss", "save_best_if=ndcg@5 >= 0.1")
    report = describe(stage_config(tmp_path / "run", 3, stages / "stage2/best", *overrides))
    assert "save_best_if has no effect, because ndcg@5 is computed from recommend rows" in report


def test_a_dry_run_knows_the_metrics_of_shared_ids(stage_config, shop, tmp_path):
    lines = (shop / "catalogue.jsonl").read_text().splitlines()
    twin = json.dumps(json.loads(lines[0]) | {"item_id": "twin"})
    (tmp_path / "catalogue.jsonl").write_text("\n".join([*lines, twin]) + "\n")
    metric, shared = "save_best_on=id_recall@5", f"data.catalogue={tmp_path / 'catalogue.jsonl'}"
    assert "# steps" in describe(stage_config(tmp_path / "run", 1, None, metric, shared))
    with pytest.raises(UserError, match="id_recall@5"):
        describe(stage_config(tmp_path / "run", 1, None, metric))


NAN = """import torch
from torchmetrics import Metric

class Unknown(Metric):
    higher_is_better = True
    full_state_update = False

    def update(self, ids, targets, exists, counts):
        pass

    def compute(self):
        return torch.tensor(torch.nan)
"""


def test_a_metric_without_a_value_is_a_warning_at_the_first_evaluation(stage_config, tmp_path, module_in_cwd, caplog):
    name = module_in_cwd("without_value", NAN)
    stopper = {"early_stopper": {"monitor": "Unknown", "dataloader_label": "eval", "patience": "100ba"}}
    overrides = [f"evaluation.metrics={json.dumps({f'{name}.Unknown': {}})}", f"callbacks={json.dumps(stopper)}"]
    config = stage_config(tmp_path / "run", 1, None, *overrides, "max_duration=4ba", "eval_interval=2ba")
    with caplog.at_level(logging.WARNING):
        trainer = build_trainer(config)
        trainer.train()
        trainer.close()
    warnings = [record.message for record in caplog.records if "NaN" in record.message]
    assert len(warnings) == 1
    assert warnings[0].startswith("callbacks.early_stopper.monitor names Unknown, which is NaN in the evaluation after")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_evaluations_log_the_metrics_that_are_computed(stages, stage):
    names = {name for line in metrics_of(stages / f"stage{stage}") for name in line if name.startswith("metrics/eval/")}
    dpo = {f"metrics/eval/{name}" for name in ("dpo_loss", "dpo_accuracy", "dpo_reward_margin")}
    assert names & dpo == (dpo if stage == 3 else set())
    assert {"metrics/eval/loss", "metrics/eval/preference_accuracy", "metrics/eval/recall@10"} <= names
    values = [value for line in metrics_of(stages / f"stage{stage}") for value in line.values() if value is not None]
    assert all(math.isfinite(value) for value in values)
