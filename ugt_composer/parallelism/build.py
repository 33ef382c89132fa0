"""Config to strategy."""

from importlib import import_module

import torch

from ugt_composer.config.schema import Config
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.strategy import MakeOptimizer, Strategy

# Imported when they are used: importing FSDP takes seconds, which a dry run under DDP does not need.
CLASSES = {
    "ddp": "ugt_composer.parallelism.ddp:DdpStrategy",
    "fsdp": "ugt_composer.parallelism.fsdp:FsdpStrategy",
    "deepspeed": "ugt_composer.parallelism.deepspeed:DeepSpeedStrategy",
}


def strategy_class(config: Config) -> type[Strategy]:
    """The class of `parallelism.strategy`, whose class methods can be called before anything is built."""
    module, _, name = CLASSES[config.parallelism.strategy].partition(":")
    return getattr(import_module(module), name)


def build_strategy(
    config: Config, model: torch.nn.Module, network: UGT, make_optimizer: MakeOptimizer, precision: str
) -> Strategy:
    """The strategy of `parallelism.*`, with the model placed.

    Args:
        model: the model to train, on the CPU; contains `network`.
        network: its layers are sharded one by one.
        precision: resolved, not "auto".

    Raises:
        UserError: a key of `parallelism.deepspeed.config` contradicts another one, or DeepSpeed refuses it.
    """
    return strategy_class(config).build(config, model, network, make_optimizer, precision)
