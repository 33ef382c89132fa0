"""The configuration of DeepSpeed's engine: our keys and the user's, which must not contradict ours."""

from typing import Any

from ugt_composer.errors import UserError

PREFIX = "parallelism.deepspeed.config"
BUCKET = 500_000_000  # elements of a communication bucket, DeepSpeed's default
AUTOCAST_DTYPES = {"amp_bf16": "bfloat16", "amp_fp16": "float16"}
# Keys of the engine, and the key of our configuration that decides their value.
OWNERS = {
    "train_batch_size": "global_train_batch_size",
    "train_micro_batch_size_per_gpu": "device_train_microbatch_size",
    "gradient_accumulation_steps": "device_train_microbatch_size",
    "managed_gradient_accumulation": "device_train_microbatch_size",
    "gradient_clipping": "max_grad_norm",
    "fp16.enabled": "precision",
    "bf16.enabled": "precision",
    "amp.enabled": "precision",
    "torch_autocast.enabled": "precision",
    "optimizer": "optimizer.*",
    "scheduler": "scheduler.*",
    "zero_optimization.stage": "parallelism.deepspeed.zero_stage",
    "zero_optimization.offload_optimizer.device": "parallelism.deepspeed.offload_optimizer",
    "zero_optimization.offload_param.device": "parallelism.deepspeed.offload_param",
    "checkpoint.load_universal": "checkpoint.sharded",
}


def engine_config(
    zero_stage: int,
    offload_optimizer: str,
    offload_param: str,
    precision: str,
    max_grad_norm: float,
    device_batch_size: int,
    world_size: int,
    num_parameters: int,
    user: dict[str, Any],
) -> dict[str, Any]:
    """DeepSpeed's configuration for a run.

    Args:
        precision: amp_bf16, amp_fp16 or fp32, resolved.
        device_batch_size: rows of a global batch per rank.
        num_parameters: of the model; buckets are at most as large.
        user: `parallelism.deepspeed.config`; merged into ours, key by key. The value "auto" keeps ours.

    Raises:
        UserError: a user's key contradicts one of ours (names both), or is a value where a section is expected.
    """
    bucket = min(BUCKET, max(num_parameters, 1))
    zero: dict[str, Any] = {"stage": zero_stage, "reduce_bucket_size": bucket}
    if zero_stage in (1, 2):
        zero["allgather_bucket_size"] = bucket
    if offload_optimizer != "none":
        zero["offload_optimizer"] = {"device": offload_optimizer}
    if offload_param != "none":
        zero["offload_param"] = {"device": offload_param}
    ours: dict[str, Any] = {
        "train_batch_size": device_batch_size * world_size,
        "train_micro_batch_size_per_gpu": device_batch_size,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # Composer splits batches into microbatches; a step ends a batch
        "gradient_clipping": max_grad_norm,
        "fp16": {"enabled": precision == "amp_fp16" and zero_stage > 0},
        "bf16": {"enabled": precision == "amp_bf16" and zero_stage > 0},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # PyTorch's AdamW is used with offloading too
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the device three times per step
    }
    if ours["bf16"]["enabled"]:
        # bf16 has 8 significant bits: a sum of microbatches in it loses summands that are 256 times smaller.
        ours["data_types"] = {"grad_accum_dtype": "fp32"}
        if zero_stage == 1:  # gradients are sent once per batch; the other stages send those of each microbatch
            ours["communication_data_type"] = "fp32"
    if zero_stage == 0 and precision in AUTOCAST_DTYPES:
        # Stage 0 in half precision would keep its float32 weights where other strategies could not read them.
        ours["torch_autocast"] = {"enabled": True, "dtype": AUTOCAST_DTYPES[precision]}
    _refuse_contradictions(user, ours)
    return _merged(ours, user, PREFIX)


def _refuse_contradictions(user: dict[str, Any], ours: dict[str, Any]) -> None:
    for path, owner in OWNERS.items():
        value, expected = select(user, path), select(ours, path)
        if value in (None, "auto", {}) or value == expected:
            continue
        if path.endswith((".enabled", ".device")) and expected is None and value in (False, "none"):
            continue
        to_value = f" to {expected!r}" if expected is not None else ""
        raise UserError(f"{PREFIX}.{path} is {value!r}, but {owner} sets it{to_value}; expected it to be left out")


def select(tree: dict[str, Any], path: str) -> Any:
    """The value of a key such as zero_optimization.stage; None if it is not set."""
    value: Any = tree
    for key in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _merged(ours: dict[str, Any], user: dict[str, Any], path: str) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in user.items():
        if value == "auto":
            continue
        old = merged.get(key)
        if isinstance(old, dict) and not isinstance(value, dict):
            raise UserError(f"{path}.{key} is {value!r}; expected keys and values such as {{{next(iter(old))}: …}}")
        merged[key] = _merged(old, value, f"{path}.{key}") if isinstance(old, dict) else value
    return merged
