"""Config to strategy."""

from typing import Any

import torch
from composer.utils import dist

from ugt_composer.config.checks import device_batch_size
from ugt_composer.config.schema import Config
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.ddp import DdpStrategy
from ugt_composer.parallelism.deepspeed_config import engine_config
from ugt_composer.parallelism.device import own_device
from ugt_composer.parallelism.strategy import MakeOptimizer, Strategy

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMPUTE_DTYPES = {"amp_bf16": torch.bfloat16, "amp_fp16": torch.float16, "fp32": None}


def build_strategy(
    config: Config, model: torch.nn.Module, network: UGT, make_optimizer: MakeOptimizer, precision: str
) -> Strategy:
    """The strategy of `parallelism.*`, with the model placed.

    Args:
        model: what is trained, on the host; holds `network`.
        network: whose layers are sharded one by one.
        precision: resolved, not "auto".

    Raises:
        UserError: a key of `parallelism.deepspeed.config` that contradicts another one or that DeepSpeed refuses.
    """
    device, parallelism = own_device(), config.parallelism
    if parallelism.strategy == "fsdp":
        from ugt_composer.parallelism.fsdp import FsdpStrategy

        fsdp, compute = parallelism.fsdp, COMPUTE_DTYPES[precision]
        return FsdpStrategy(
            model,
            make_optimizer,
            [*network.encoder.layers, *network.decoder.layers],
            device,
            fsdp.reshard_after_forward,
            DTYPES[fsdp.param_dtype] if fsdp.param_dtype else compute,
            DTYPES[fsdp.reduce_dtype or "float32"],
            fsdp.cpu_offload,
            fsdp.reduce_every_microbatch,
        )
    if parallelism.strategy == "deepspeed":
        from ugt_composer.parallelism.deepspeed import DeepSpeedStrategy

        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        settings = deepspeed_settings(config, precision, dist.get_world_size(), num_parameters)
        return DeepSpeedStrategy(model, make_optimizer, settings, device)
    return DdpStrategy(model, make_optimizer, device)


def deepspeed_settings(config: Config, precision: str, world_size: int, num_parameters: int) -> dict[str, Any]:
    """The configuration of DeepSpeed's engine. UserError for a key of the user's that contradicts another one."""
    deepspeed = config.parallelism.deepspeed
    return engine_config(
        deepspeed.zero_stage,
        deepspeed.offload_optimizer,
        deepspeed.offload_param,
        precision,
        config.max_grad_norm,
        device_batch_size(config, world_size),
        world_size,
        num_parameters,
        deepspeed.config,
    )
