"""Runs of stage 3 with the on-policy objective: from recommend rows alone, resumed exactly, split in any way."""

import json

import pytest

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


def test_the_dry_run_counts_the_groups_memory(stage_config, shop, stages, tmp_path):
    sizes = []
    for size in (2, 64):
        report = describe(group_run(stage_config, shop, stages, tmp_path / "out", f"loss.group_size={size}"))
        sizes.append(float(report.rpartition("activations")[0].rpartition("activations")[2].split()[0]))
    assert sizes[1] > 2 * sizes[0]
