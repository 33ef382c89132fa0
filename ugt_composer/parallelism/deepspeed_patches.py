"""Private code of DeepSpeed that is set, read or called; see `ugt_composer/patches.py` and `docs/architecture.md`.

A checkpoint that any strategy can resume from needs weights, moments and loss scale, and DeepSpeed has no public way to
read and write them at every stage.
"""

import contextlib
import io
import logging
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ugt_composer.patches import Patch

Partitions = list[tuple[list[nn.Parameter], Tensor]]


def import_deepspeed(device: torch.device) -> Any:
    """Imports DeepSpeed for the run's device, without its messages."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    with quiet():
        import deepspeed
    # An all-reduce through shared memory for CPUs. It would be compiled at the first start, under a lock that a killed
    # run leaves behind and every later run waits for.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


@contextlib.contextmanager
def quiet():
    """Suppresses what DeepSpeed prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def forget_autocast(deepspeed: Any) -> None:
    """Call before creating an engine: one of stage 0 leaves a flag that makes later ones scale the loss."""
    deepspeed.runtime.torch_autocast.TORCH_AUTOCAST_INITIALIZED = False


def is_flat(parameter: nn.Parameter) -> bool:
    """Whether a parameter is part of a flat partition. At stage 0 in float32 it is an ordinary parameter."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def partitions(zero_optimizer: Any, zero_stage: int) -> Partitions:
    """For each group of the optimizer, its parameters and this rank's flat float32 part of them. For gradients that are
    accumulated in float32, stage 1 in bf16 has a separate class."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

    if zero_stage == 3:
        return list(zip(zero_optimizer.fp16_groups, zero_optimizer.fp32_partitioned_groups_flat, strict=True))
    if isinstance(zero_optimizer, BF16_Optimizer):
        return list(zip(zero_optimizer.bf16_groups, zero_optimizer.fp32_groups_flat_partition, strict=True))
    return list(zip(zero_optimizer.bit16_groups, zero_optimizer.single_partition_of_fp32_groups, strict=True))


def link_moments(zero_optimizer: Any, zero_stage: int, state: dict[Tensor, Any]) -> None:
    """Links each parameter to its part of the optimizer's state. Stages 1 and 2 do that after the step of the first
    parameter group, when the other groups have no state yet."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    for parameters, flat in partitions(zero_optimizer, zero_stage):
        lazy_init_hp_params_optimizer_state(parameters, flat, state)
    zero_optimizer._hp_optimizer_states_linked = True


def shard_of(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's part of a whole tensor at stage 3: one of equal pieces of the flat tensor, the last one padded."""
    size = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
    start = dist.get_rank() * size
    piece = value.flatten()[start : start + size]
    return torch.nn.functional.pad(piece, (0, size - piece.numel()))


def write_shard(parameter: nn.Parameter, shard: Tensor) -> None:
    """Writes this rank's part of a weight at stage 3, in the dtype that it computes in."""
    parameter.ds_tensor.data.copy_(shard)  # type: ignore[attr-defined]


def loss_scale_state(engine: Any) -> dict[str, Any]:
    """The loss scaler's state in the form of PyTorch's GradScaler; {} if the loss is not scaled."""
    if not engine.fp16_enabled():
        grad_scaler = engine.torch_autocast_z0_gradscaler
        return {} if grad_scaler is None else grad_scaler.state_dict()
    scaler = engine.optimizer.loss_scaler
    return {
        "scale": float(scaler.cur_scale),
        "growth_factor": float(scaler.scale_factor),
        "backoff_factor": 1 / float(scaler.scale_factor),
        "growth_interval": int(scaler.scale_window),
        "_growth_tracker": int(scaler.cur_iter - scaler.last_overflow_iter - 1) % int(scaler.scale_window),
    }


def load_loss_scale_state(engine: Any, state: dict[str, Any]) -> None:
    """Restores a state that `loss_scale_state` returned."""
    if not engine.fp16_enabled():
        if engine.torch_autocast_z0_gradscaler is not None:
            engine.torch_autocast_z0_gradscaler.load_state_dict(state)
        return
    scaler = engine.optimizer.loss_scaler
    scaler.cur_scale = state["scale"]
    scaler.last_overflow_iter = scaler.cur_iter - 1 - state["_growth_tracker"]


ANY_STRATEGY = "weights and moments could not be exchanged between DeepSpeed and the other strategies"
UNIVERSAL = "a public way to read and write the complete state of one parameter at every stage"
PATCHES = [
    Patch(
        "deepspeed.ops:__getattr__",
        "__compatible_ops__ is set to disable the all-reduce through shared memory on CPUs",
        "it is compiled at the first start, under a lock that a killed run leaves behind and every later run waits for",
        "a lock that is released when its process ends",
        ("b6327fe22a4b",),
    ),
    Patch(
        "deepspeed.runtime.torch_autocast:TORCH_AUTOCAST_INITIALIZED",
        "set to false before an engine is created",
        "once a process has created an engine of stage 0, all its later engines scale the loss",
        "a flag of the engine",
    ),
    Patch(
        "deepspeed.utils.mixed_precision_linkage:lazy_init_hp_params_optimizer_state",
        "called before the first step",
        ANY_STRATEGY,
        UNIVERSAL,
        ("eec90c577eac",),
    ),
    Patch(
        "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.__init__",
        "its bit16_groups, single_partition_of_fp32_groups and _hp_optimizer_states_linked are read and set",
        ANY_STRATEGY,
        UNIVERSAL,
        ("faa9fe03f220",),
    ),
    Patch(
        "deepspeed.runtime.bf16_optimizer:BF16_Optimizer.__init__",
        "its bf16_groups and fp32_groups_flat_partition are read",
        ANY_STRATEGY,
        UNIVERSAL,
        ("2e9a015b9bc3",),
    ),
    Patch(
        "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3.__init__",
        "its fp16_groups and fp32_partitioned_groups_flat are read",
        ANY_STRATEGY,
        UNIVERSAL,
        ("2ebc271180aa",),
    ),
    Patch(
        "deepspeed.runtime.zero.partition_parameters:Init._partition_param",
        "the parameters' ds_tensor is read and written",
        ANY_STRATEGY,
        UNIVERSAL,
        ("0a3cc348590e",),
    ),
    Patch(
        "deepspeed.runtime.fp16.loss_scaler:DynamicLossScaler.update_scale",
        "cur_scale, cur_iter and last_overflow_iter are read and set",
        "a resumed run would search for its loss scale again and skip steps",
        "a state_dict of the loss scaler",
        ("0aa6d6d66570",),
    ),
    Patch(
        "deepspeed.runtime.engine:DeepSpeedEngine.backward",
        "torch_autocast_z0_gradscaler of the engine is read",
        "as for update_scale, at stage 0",
        "a state_dict of the loss scaler",
        ("b8c4368bee04",),
    ),
    Patch(
        "deepspeed.runtime.config:DeepSpeedConfig._initialize_params",
        "called, with a dict that records which keys it reads",
        "an unknown key would be ignored, and an invalid value reported only when the job starts",
        "a public check of a configuration, with all keys",
        ("ccf7da2da6a0",),
    ),
    Patch(
        "deepspeed.runtime.config:DeepSpeedConfig._batch_assertion",
        "overridden in that check",
        "a dry run on one process could not check a configuration for several ranks",
        "as for _initialize_params",
        ("11798b874056",),
    ),
]
