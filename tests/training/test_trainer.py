"""Every shipped stage, shrunk: it trains, logs and saves a model that can be loaded elsewhere."""

import math

import pytest
import torch

from tests.shop import comparable, metrics_of
from ugt_composer.checkpoint.portable import FINGERPRINT, load_portable
from ugt_composer.training.build import build_trainer

LOSSES = ("total", "ntp_loss", "ntp_l1_loss", "ntp_l2_loss", "ntp_l3_loss", "contrastive_loss", "dpo_loss")
TRAINING = {
    1: ("ntp_l1_acc", "ntp_l2_acc", "ntp_l3_acc", "grad_norm", "learning rate", "samples/s"),
    2: ("contrastive_u2i_acc", "contrastive_i2u_acc"),
    3: ("dpo_accuracy", "dpo_reward_margin"),
}
RANKING = ("recall", "ndcg", "hit_rate", "coverage", "diversity", "gini", "hit_rate_l1", "hit_rate_l1_l2")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_record_has_the_promised_names_and_each_batch_once(stages, stage):
    lines = metrics_of(stages / f"stage{stage}")
    batches = math.ceil((205 if stage < 3 else 335) / 32) * 2
    assert len(lines) == lines[-1]["batch"]
    assert [line["batch"] for line in lines] == list(range(1, len(lines) + 1))
    assert abs(len(lines) - batches) <= 2  # rows that are both chosen and rejected were not written
    for line in lines:
        assert {f"loss/train/{name}" for name in (*LOSSES, "moe_balance_loss")} <= line.keys()
        for needed in range(1, stage + 1):
            assert {f"metrics/train/{name}" for name in TRAINING[needed]} <= line.keys()
    evaluated = [line["batch"] for line in lines if "metrics/eval/recall@10" in line]
    assert evaluated == [*range(5, len(lines), 5), len(lines)] or evaluated == list(range(5, len(lines) + 1, 5))
    assert {f"metrics/eval/{name}@{k}" for name in RANKING for k in (5, 10, 20, 50)} <= lines[-1].keys()
    assert {"metrics/eval/mrr", "metrics/eval/preference_accuracy", "metrics/eval/loss"} <= lines[-1].keys()


def test_losses_fall_and_each_stage_has_its_losses(stages):
    first, last = metrics_of(stages / "stage1")[0], metrics_of(stages / "stage1")[-1]
    assert last["loss/train/ntp_loss"] < 0.8 * first["loss/train/ntp_loss"]
    assert last["loss/train/contrastive_loss"] == last["loss/train/dpo_loss"] == 0
    second = metrics_of(stages / "stage2")
    assert second[-1]["loss/train/contrastive_loss"] < second[0]["loss/train/contrastive_loss"]
    third = metrics_of(stages / "stage3")
    assert third[0]["loss/train/dpo_loss"] == pytest.approx(math.log(2))  # policy = reference
    # Bit for bit, although experts drop tokens over their capacity.
    assert third[0]["metrics/train/dpo_reward_margin"] == third[0]["metrics/train/dpo_accuracy"] == 0
    assert third[-1]["loss/train/dpo_loss"] < third[0]["loss/train/dpo_loss"]
    parts = {"ntp": 1.0, "contrastive": 0.1, "dpo": 0.1, "anchor": 0.4, "moe_balance": 0.01}
    total = sum(weight * third[-1][f"loss/train/{name}_loss"] for name, weight in parts.items())
    assert third[-1]["loss/train/total"] == pytest.approx(total, rel=1e-5)


def test_the_reference_has_the_policys_softmax(stages, stage_config, tmp_path):
    """Stage 2 was trained with a softmax over the codebooks."""
    more = ("model.level_softmax=catalogue", "data.eval.streams=[]", "save_best_on=null", "max_duration=1ba")
    trainer = build_trainer(stage_config(tmp_path / "run", 3, stages / "stage2/best", *more))
    trainer.train()
    trainer.close()
    (line,) = metrics_of(tmp_path / "run")
    assert line["metrics/train/dpo_reward_margin"] == line["metrics/train/dpo_accuracy"] == 0
    assert line["loss/train/dpo_loss"] == pytest.approx(math.log(2))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_folder_holds_what_is_promised(stages, stage):
    folder = stages / f"stage{stage}"
    assert (folder / "config.yaml").is_file()
    for name in ("best", "latest"):
        files = {"model.safetensors", "config.yaml", "catalogue.jsonl.zst", "record.json"}
        assert {path.name for path in (folder / name).iterdir()} == files
    assert len(list(folder.glob("ba*.pt"))) == 3
    assert not list(folder.rglob("*.tmp"))


def test_a_portable_model_gives_the_logits_of_the_trained_one(stages, stage_config, random_batch):
    trainer = build_trainer(stage_config(stages / "stage1"))
    trained = trainer.state.model.model.eval()
    loaded, config, facts = load_portable(stages / "stage1" / "latest")
    batch = {k: v.clamp(max=20) if v.dtype == torch.long and v.dim() == 3 else v for k, v in random_batch().items()}
    found, expected = (model(batch, with_logits=True)["l3_logits"] for model in (loaded, trained))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert config.model.d_model == 32
    assert len(facts[FINGERPRINT]) == 64
    assert int(facts["batch"]) == trainer.length.total
    assert trainer.is_finished
    trainer.close()


def test_a_stage_starts_from_the_one_before(stages, stage_config, tmp_path):
    trainer = build_trainer(stage_config(tmp_path, 2, stages / "stage1" / "best"))
    loaded, _, _ = load_portable(stages / "stage1" / "best")
    for name, weight in trainer.state.model.model.state_dict().items():
        torch.testing.assert_close(weight, loaded.state_dict()[name], rtol=0, atol=0)
    trainer.close()


def test_a_finished_run_is_not_trained_again_and_says_so(stages, stage_config, capsys):
    trainer = build_trainer(stage_config(stages / "stage1"))
    trainer.train()
    trainer.close()
    line = f"{stages / 'stage1'}: already trained for {trainer.config.max_duration}; nothing to do\n"
    assert line in capsys.readouterr().err


def test_all_stages_have_the_same_state_dict_and_train_their_own_part(stages, stage_config, tmp_path):
    frozen = {}
    for stage in (1, 2):
        previous = stages / "stage1" / "best" if stage > 1 else None
        trainer = build_trainer(stage_config(tmp_path / str(stage), stage, previous))
        model = trainer.state.model
        frozen[stage] = {name for name, p in model.named_parameters() if not p.requires_grad}
        assert "reference" not in " ".join(model.state_dict())
        trainer.close()
    assert frozen == {
        1: {"model.user_proj.weight", "model.user_proj.bias", "model.item_proj.weight", "model.item_proj.bias"},
        2: set(),
    }
    states = [load_portable(stages / f"stage{stage}" / "best")[0].state_dict().keys() for stage in (1, 2, 3)]
    assert states[0] == states[1] == states[2]


def test_the_reference_is_neither_trained_nor_saved(stages, stage_config, tmp_path):
    trainer = build_trainer(stage_config(tmp_path, 3, stages / "stage2" / "best", "max_duration=4ba"))
    reference = trainer.state.model.reference.model
    before = {name: p.clone() for name, p in reference.named_parameters()}
    trainer.train()
    assert all(torch.equal(before[name], p) for name, p in reference.named_parameters())
    assert not any(
        torch.equal(before[name], p) for name, p in trainer.state.model.model.named_parameters() if p.numel() > 500
    )
    optimized = sum(len(group["params"]) for group in trainer.state.optimizers[0].param_groups)
    assert optimized == len(list(trainer.state.model.model.parameters()))
    trainer.close()


def test_the_seed_decides_every_number(stage_config, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        trainer = build_trainer(stage_config(tmp_path / name, 1, None, f"seed={seed}", "max_duration=6ba"))
        trainer.train()
        trainer.close()
    assert comparable(tmp_path / "a") == comparable(tmp_path / "b")
    assert comparable(tmp_path / "a") != comparable(tmp_path / "c")


def test_microbatches_do_not_change_next_token_and_preference_losses(stages, stage_config, tmp_path):
    """Dropout and capacity off: both depend on the grouping by design."""
    runs = {}
    for size in (32, 16, 8, 5):
        overrides = (f"device_train_microbatch_size={size}", "model.expert_capacity_factor=null", "max_duration=5ba")
        alone = ("loss.lambda_contrastive=0", "loss.lambda_moe_balance=0", "data.eval.streams=[]", "save_best_on=null")
        trainer = build_trainer(stage_config(tmp_path / str(size), 3, stages / "stage2" / "best", *overrides, *alone))
        trainer.train()
        trainer.close()
        runs[size] = metrics_of(tmp_path / str(size))
    for size in (16, 8, 5):
        for whole, split in zip(runs[32], runs[size], strict=True):
            for name in ("loss/train/total", "loss/train/ntp_loss", "loss/train/dpo_loss", "metrics/train/grad_norm"):
                assert split[name] == pytest.approx(whole[name], rel=1e-5), (size, name)


def test_gradients_are_clipped(stage_config, tmp_path):
    weights = {}
    for norm in (1e-6, 1e6):
        # With plain eps the step of Adam does not depend on the gradient's scale; a large eps shows it.
        overrides = (f"max_grad_norm={norm}", "optimizer.eps=1.0", "max_duration=3ba", "optimizer.weight_decay=0")
        trainer = build_trainer(stage_config(tmp_path / str(norm), 1, None, *overrides))
        before = trainer.state.model.model.encoder.layers[0].ff.up.weight.clone()
        trainer.train()
        weights[norm] = (trainer.state.model.model.encoder.layers[0].ff.up.weight - before).abs().max()
        trainer.close()
        assert all(line["metrics/train/grad_norm"] > 1e-3 for line in metrics_of(tmp_path / str(norm)))
    assert weights[1e-6] < 1e-3 * weights[1e6]


def test_an_epoch_at_a_time_follows_the_curve_of_the_whole_run(stage_config, tmp_path):
    whole = build_trainer(stage_config(tmp_path / "whole"))
    whole.train()
    whole.close()
    pieces = build_trainer(stage_config(tmp_path / "pieces"))
    pieces.train_epoch()
    assert not pieces.is_finished
    pieces.train_epoch()
    assert pieces.is_finished
    pieces.close()
    rates = [
        [line["metrics/train/learning rate"] for line in metrics_of(tmp_path / name)] for name in ("whole", "pieces")
    ]
    assert rates[0] == rates[1]
    losses = [[line["loss/train/total"] for line in metrics_of(tmp_path / name)] for name in ("whole", "pieces")]
    assert losses[0] == losses[1]


def test_evaluation_by_hand_returns_the_metrics_and_records_nothing(stages, stage_config):
    trainer = build_trainer(stage_config(stages / "stage1"))
    before = (stages / "stage1" / "metrics.jsonl").read_bytes()
    values = trainer.evaluate()
    assert values["metrics/eval/recall@10"] == metrics_of(stages / "stage1")[-1]["metrics/eval/recall@10"]
    assert (stages / "stage1" / "metrics.jsonl").read_bytes() == before
    trainer.close()
