"""The engine's configuration: our keys, the user's keys over them, and combinations that are refused."""

import pytest

from ugt_composer.errors import UserError
from ugt_composer.parallelism.deepspeed_config import OWNERS, engine_config


def config(user=None, zero_stage=2, precision="fp32", **changes):
    arguments = {
        "zero_stage": zero_stage,
        "offload_optimizer": "none",
        "offload_param": "none",
        "precision": precision,
        "max_grad_norm": 1.0,
        "device_batch_size": 16,
        "world_size": 2,
        "num_parameters": 1000,
        "user": user or {},
    }
    return engine_config(**(arguments | changes))


def test_user_keys_reach_the_engine_beside_ours():
    merged = config({"zero_optimization": {"overlap_comm": True}, "wall_clock_breakdown": True})
    assert merged["zero_optimization"] == {
        "stage": 2,
        "reduce_bucket_size": 1000,
        "allgather_bucket_size": 1000,
        "overlap_comm": True,
    }
    assert merged["wall_clock_breakdown"] is True
    assert merged["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    ("user", "key", "owner"),
    [
        ({"train_batch_size": 64}, "train_batch_size", "global_train_batch_size"),
        ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu", "device_train_microbatch_size"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps", "device_train_microbatch_size"),
        ({"gradient_clipping": 0.5}, "gradient_clipping", "max_grad_norm"),
        ({"fp16": {"enabled": True}}, "fp16.enabled", "precision"),
        ({"bf16": {"enabled": True}}, "bf16.enabled", "precision"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast.enabled", "precision"),
        ({"optimizer": {"type": "Adam"}}, "optimizer", "optimizer.*"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler", "scheduler.*"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage", "parallelism.deepspeed.zero_stage"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "zero_optimization.offload_optimizer.device",
            "parallelism.deepspeed.offload_optimizer",
        ),
    ],
)
def test_a_contradiction_names_both_keys(user, key, owner):
    with pytest.raises(UserError) as error:
        config(user)
    assert f"parallelism.deepspeed.config.{key} is " in str(error.value)
    assert owner in str(error.value)


def test_the_same_value_and_auto_contradict_nothing():
    same = {"gradient_clipping": 1.0, "fp16": {"enabled": False}, "zero_optimization": {"stage": 2}}
    assert config(same) == config()
    assert config(dict.fromkeys(OWNERS, "auto")) == config()
    assert config({"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}}) == config()


@pytest.mark.parametrize(("precision", "fp16", "bf16"), [("fp32", 0, 0), ("amp_fp16", 1, 0), ("amp_bf16", 0, 1)])
def test_precision_decides_what_the_engine_computes_in(precision, fp16, bf16):
    merged = config({"fp16": {"initial_scale_power": 12}}, precision=precision)
    assert (merged["fp16"]["enabled"], merged["bf16"]["enabled"]) == (bool(fp16), bool(bf16))
    assert merged["fp16"]["initial_scale_power"] == 12


def test_stage_0_keeps_float32_weights_and_casts_what_it_computes():
    merged = config(zero_stage=0, precision="amp_bf16")
    assert merged["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert not merged["bf16"]["enabled"]


def test_offload_is_wired():
    zero = config(zero_stage=3, offload_optimizer="cpu", offload_param="cpu")["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu"}
    assert zero["offload_param"] == {"device": "cpu"}


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_gradients_in_bf16_are_accumulated_in_float32_unless_asked_otherwise(zero_stage):
    assert config(zero_stage=zero_stage, precision="amp_bf16")["data_types"] == {"grad_accum_dtype": "fp32"}
    own = {"data_types": {"grad_accum_dtype": "bf16"}}
    assert config(own, zero_stage=zero_stage, precision="amp_bf16")["data_types"] == own["data_types"]
    assert "data_types" not in config(zero_stage=zero_stage)
    sums = config(zero_stage=zero_stage, precision="amp_bf16").get("communication_data_type")
    assert sums == ("fp32" if zero_stage == 1 else None)
