"""Config to strategy."""

import torch
from composer.utils import dist

from ugt_composer.config.schema import Config
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.ddp import DdpStrategy
from ugt_composer.parallelism.device import own_device
from ugt_composer.parallelism.strategy import MakeOptimizer, Strategy
from ugt_composer.training.preflight import deepspeed_settings

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
