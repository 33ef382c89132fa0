"""DDP: each rank has the whole model; gradients are averaged after the last microbatch. Composer wraps the model."""

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor, nn

from ugt_composer.config.schema import Config
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.device import own_device
from ugt_composer.parallelism.memory import FLOAT, MemoryItem, ModelSizes
from ugt_composer.parallelism.strategy import MakeOptimizer, Moments, Strategy, placed


class DdpStrategy(Strategy):
    composer_places_model = True

    def __init__(self, model: nn.Module, make_optimizer: MakeOptimizer, device: torch.device):
        self.model = self.module = model.to(device)
        self.optimizer = make_optimizer(model)
        self.device = device
        self._norm = torch.zeros(())

    @classmethod
    def build(
        cls, config: Config, model: nn.Module, network: UGT, make_optimizer: MakeOptimizer, precision: str
    ) -> Self:
        return cls(model, make_optimizer, own_device())

    @classmethod
    def memory(cls, config: Config, sizes: ModelSizes, world_size: int, precision: str) -> list[MemoryItem]:
        return [
            MemoryItem("weights", FLOAT * sizes.parameters),
            MemoryItem("gradients", FLOAT * sizes.trainable),
            MemoryItem("optimizer", 2 * FLOAT * sizes.trainable),
            *([MemoryItem("buckets", FLOAT * sizes.trainable)] if world_size > 1 else []),
            *([MemoryItem("average of the weights", FLOAT * sizes.trainable)] if config.ema_decay is not None else []),
        ]

    def clip_gradients(self, max_norm: float) -> None:
        self._norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)

    def gradient_norm(self) -> Tensor:
        return self._norm

    def trainable_parts(self) -> Iterator[tuple[str, Tensor]]:
        yield from ((name, weight.detach()) for name, weight in self.named_parameters() if weight.requires_grad)

    def read_weight(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach()

    def write_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        parameter.detach().copy_(value)

    def read_moments(self, parameter: nn.Parameter) -> Moments:
        return dict(self.optimizer.state.get(parameter, {}))

    def write_moments(self, parameter: nn.Parameter, moments: Moments) -> None:
        self.optimizer.state[parameter] = placed(moments, parameter.device)
