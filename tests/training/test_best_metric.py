"""Names of metrics in a config are checked before the run trains."""

import math

import pytest

from tests.shop import metrics_of
from ugt_composer.errors import UserError
from ugt_composer.training.build import build_trainer

ONLY_PAIRS = ("data.eval.streams=[{local: PLACE/preference_eval}]",)
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
    ],
)
def test_a_metric_that_is_not_computed_is_refused_with_the_reason(
    stage_config, stages, shop, tmp_path, stage, overrides, words
):
    overrides = [word.replace("PLACE", str(shop)) for word in overrides]
    config = stage_config(tmp_path / "run", stage, stages / f"stage{stage - 1}" / "best", *overrides)
    with pytest.raises(UserError) as error:
        build_trainer(config)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_evaluations_log_the_metrics_that_are_computed(stages, stage):
    names = {name for line in metrics_of(stages / f"stage{stage}") for name in line if name.startswith("metrics/eval/")}
    dpo = {f"metrics/eval/{name}" for name in ("dpo_loss", "dpo_accuracy", "dpo_reward_margin")}
    assert names & dpo == (dpo if stage == 3 else set())
    assert {"metrics/eval/loss", "metrics/eval/preference_accuracy", "metrics/eval/recall@10"} <= names
    values = [value for line in metrics_of(stages / f"stage{stage}") for value in line.values() if value is not None]
    assert all(math.isfinite(value) for value in values)
