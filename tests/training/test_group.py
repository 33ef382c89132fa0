"""Runs of stage 3 with the on-policy objective: from recommend rows alone, resumed exactly, split in any way."""

import json
import shutil

import pytest

from ugt_composer.cli.main import main as ugt
from ugt_composer.config.load import load_config
from ugt_composer.errors import UserError
from ugt_composer.training.build import build_trainer
from ugt_composer.training.dry_run import describe

GROUP = (
    "loss.preference_objective=group",
    "loss.lambda_preference=1.0",
    "loss.group_size=8",
    "loss.group_rewards=[0.1,0.3,1.0]",
    "model.level_softmax=catalogue",
    "data.train.streams=[]",
    "max_duration=4ba",
    "eval_interval=2ba",
    "save_interval=2ba",
)


def group_run(stage_config, shop, stages, out, *overrides):
    streams = f"data.eval.streams=[{{local: {shop / 'eval'}}},{{local: {shop / 'preference_eval'}}}]"
    return stage_config(
        out, 3, stages / "stage2" / "best", *GROUP, f"data.train.local={shop / 'train'}", streams, *overrides
    )


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def trained(config, duration=None):
    trainer = build_trainer(config)
    trainer.fit(duration=duration) if duration else trainer.train()
    trainer.close()


def test_a_run_from_recommend_rows_logs_its_group_and_resumes_with_the_same_draws(stage_config, shop, stages, tmp_path):
    config = group_run(stage_config, shop, stages, tmp_path / "whole")
    trained(config)
    resumed = group_run(stage_config, shop, stages, tmp_path / "resumed")
    trained(resumed, "2ba")
    trained(resumed)
    whole, again = lines_of(tmp_path / "whole"), lines_of(tmp_path / "resumed")
    volatile = {"metrics/train/samples/s"}
    for line, other in zip(whole, again, strict=True):
        assert {k: v for k, v in line.items() if k not in volatile} == {
            k: v for k, v in other.items() if k not in volatile
        }
    first = whole[0]
    assert "loss/train/dpo_loss" not in first
    assert first["metrics/train/group_kl"] == 0  # the policy is the reference
    assert first["metrics/train/group_reward"] > 0
    evaluated = [line for line in whole if "metrics/eval/loss" in line][-1]
    assert evaluated["metrics/eval/group_kl"] > 0
    for name in ("group_loss", "group_reward", "group_recall", "group_entropy", "preference_accuracy", "recall@10"):
        assert f"metrics/eval/{name}" in evaluated
    assert evaluated["metrics/eval/group_loss"] == pytest.approx(
        -evaluated["metrics/eval/group_reward"] + 0.04 * evaluated["metrics/eval/group_kl"], rel=1e-5
    )


def test_the_size_of_a_microbatch_changes_nothing_that_the_group_does(stage_config, shop, stages, tmp_path):
    logged = []
    for size in (32, 8):
        out = tmp_path / str(size)
        settings = ("lambda_moe_balance=0", "lambda_contrastive=0")
        config = group_run(
            stage_config,
            shop,
            stages,
            out,
            f"device_train_microbatch_size={size}",
            "model.expert_capacity_factor=null",
            "max_duration=3ba",
            *(f"loss.{setting}" for setting in settings),
        )
        trained(config)
        logged.append([line for line in lines_of(out) if "loss/train/total" in line])
    for line, other in zip(*logged, strict=True):
        for name in ("loss/train/group_loss", "metrics/train/group_reward", "metrics/train/grad_norm"):
            assert line[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6)


def test_a_reward_file_is_read_by_run_and_dry_run(stage_config, shop, stages, tmp_path):
    rewards = tmp_path / "rewards.jsonl"
    rewards.write_text("".join(json.dumps({"item_id": f"item-{n}", "reward": 0.25}) + "\n" for n in range(60)))
    overrides = (f"loss.reward_file={rewards}", "loss.group_rewards=[0,0,0]", "loss.group_kl=0", "max_duration=1ba")
    config = group_run(stage_config, shop, stages, tmp_path / "out", *overrides, "loss.reference_from=null")
    trained(config)
    line = lines_of(tmp_path / "out")[0]
    assert line["metrics/train/group_reward"] == pytest.approx(0.25, rel=0.2)
    assert "metrics/train/group_kl" not in line
    rewards.write_text('{"item_id": "item-0", "reward": 1}\n')
    for build in (describe, build_trainer):
        with pytest.raises(UserError, match=r"loss.reward_file: .*rewards.jsonl has no reward for 59 of 60 items"):
            build(config)


def test_a_run_draws_no_retired_items(stage_config, shop, stages, tmp_path):
    """All items but one are retired, so that nothing is random. The targets are other ones."""
    items = [json.loads(line) for line in (shop / "catalogue.jsonl").read_text().splitlines()]
    catalogue, rewards = tmp_path / "catalogue.jsonl", tmp_path / "rewards.jsonl"
    catalogue.write_text("".join(json.dumps(item | {"retired": item != items[7]}) + "\n" for item in items))
    rewards.write_text("".join(json.dumps({"item_id": f"item-{n}", "reward": n}) + "\n" for n in range(60)))
    overrides = [f"data.catalogue={catalogue}", f"loss.reward_file={rewards}", "loss.group_rewards=[0,0,0]"]
    trained(group_run(stage_config, shop, stages, tmp_path / "out", *overrides, "max_duration=2ba"))
    first, last = lines_of(tmp_path / "out")
    for line, part in ((first, "train"), (last, "eval")):
        assert line[f"metrics/{part}/group_entropy"] == line[f"metrics/{part}/group_kl"] == 0
        assert 6 < line[f"metrics/{part}/group_reward"] <= 7


def test_the_dry_run_counts_the_groups_memory(stage_config, shop, stages, tmp_path):
    sizes = []
    for size in (2, 64):
        report = describe(group_run(stage_config, shop, stages, tmp_path / "out", f"loss.group_size={size}"))
        assert f"groups of {size} items" in report
        sizes.append(float(report.rpartition("activations")[0].rpartition("activations")[2].split()[0]))
    assert sizes[1] > 2 * sizes[0]


def test_a_model_is_evaluated_with_its_group_and_without_it_if_the_reference_is_gone(
    stage_config, shop, stages, tmp_path, caplog
):
    reference = tmp_path / "reference"
    shutil.copytree(stages / "stage2/best", reference)
    config = group_run(
        stage_config, shop, stages, tmp_path / "out", f"loss.reference_from={reference}", "max_duration=3ba"
    )
    trained(config)
    in_run = [line for line in lines_of(tmp_path / "out") if "metrics/eval/loss" in line][-1]
    words = ["evaluate", "--checkpoint", str(tmp_path / "out/latest"), "--json", str(tmp_path / "found.json")]
    words += ["--data", str(shop / "eval"), "--data", str(shop / "preference_eval")]
    assert ugt(words) == 0
    found = json.loads((tmp_path / "found.json").read_text())["metrics"]
    for name in ("group_reward", "group_kl", "group_recall", "loss"):
        assert found[name] == pytest.approx(in_run[f"metrics/eval/{name}"], rel=1e-4)
    shutil.rmtree(reference)
    assert ugt(words) == 0
    assert f"{reference} does not exist; evaluated without the group" in caplog.text
    without = json.loads((tmp_path / "found.json").read_text())["metrics"]
    assert "group_reward" not in without
    assert without["recall@10"] == found["recall@10"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.level_softmax=codebook", "model.level_softmax is codebook with .* group: .*expected catalogue"),
        ("loss.group_size=1", "loss.group_size is 1; expected at least 2"),
        ("loss.group_rewards=[0.5,0.2,1]", r"loss.group_rewards is \[0.5, 0.2, 1.0\]; expected three numbers"),
        ("loss.group_rewards=[0,0,0]", "loss.group_rewards is all 0 without loss.reward_file"),
        ("loss.group_kl=-1", "loss.group_kl is -1.0; expected 0 or more"),
        ("loss.dpo_reference_free=true", "loss.dpo_reference_free is true with .* group; .*loss.group_kl=0"),
        ("loss.reference_log_probs=data", "loss.reference_log_probs is data with .* group: .*expected model"),
        ("loss.preference_objective=dpo", "loss.reward_file is rewards.csv, which only .* group reads"),
        ("data.catalogue=null", "data.catalogue is missing"),
        ("loss.reference_from=null", "loss.reference_from is missing; .*loss.group_kl=0"),
    ],
)
def test_settings_that_do_not_go_with_a_group_are_refused(override, words):
    group = ["loss.preference_objective=group", "loss.lambda_preference=1", "loss.reference_from=best"]
    with_file = ["loss.reward_file=rewards.csv"] if "dpo" in override.partition("=")[2] else []
    catalogue = ["model.level_softmax=catalogue", "data.catalogue=catalogue.jsonl"]
    load_config(overrides=[*group, *catalogue])
    with pytest.raises(UserError, match=words):
        load_config(overrides=[*group, *catalogue, *with_file, override])
