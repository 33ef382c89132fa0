"""The interface of a strategy: it places the model on the ranks, clips gradients, reads and writes whole tensors, and
estimates a rank's memory beforehand.

To add one: a module of this package with a class like `DdpStrategy`, its name in `parallelism/build.py` and in
`config/schema.py`, and the properties that the checks of the configuration need in `config/strategies.py`.

Everything that uses it (losses, callbacks, checkpoints) is the same for all strategies. Whole tensors are read and
written one parameter at a time, so that no rank holds a second model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from ugt_composer.config.schema import Config
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.memory import FLOAT, MemoryItem, ModelSizes, per_rank

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
Moments = dict[str, Tensor]  # a parameter's optimizer state: tensors of its shape, and of shape () such as `step`


class Strategy(ABC):
    """
    Attributes:
        model: the model as built; its parameters may be shards.
        module: the module whose `forward` Composer calls.
        optimizer: the optimizer whose `step` Composer calls and whose `param_groups` schedules change.
        scaler: scales the loss instead of Composer's own scaler; None leaves that to Composer.
        device: where whole tensors are gathered.
        composer_places_model: whether Composer moves the model to the device; else the strategy does.
    """

    composer_places_model: ClassVar[bool] = False

    model: nn.Module
    module: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None = None
    device: torch.device

    @classmethod
    @abstractmethod
    def build(
        cls, config: Config, model: nn.Module, network: UGT, make_optimizer: MakeOptimizer, precision: str
    ) -> Self:
        """See `build_strategy`."""

    # Class methods, called before anything is built.

    @classmethod  # noqa: B027 - most have nothing to check
    def check(cls, config: Config, precision: str, world_size: int) -> None:
        """UserError if a package is not installed or the strategy does not support a setting."""

    @classmethod
    def describe(cls, config: Config) -> str:
        """The strategy and its main setting, for people to read."""
        return config.parallelism.strategy

    @classmethod
    def composer_precision(cls, precision: str) -> str:
        """The precision that Composer sets up; "fp32" if the strategy casts and scales by itself."""
        return precision

    @classmethod
    def casts_model(cls, config: Config) -> bool:
        """Whether half precision casts the whole model instead of using autocast."""
        return False

    @classmethod
    def weight_bytes(cls, config: Config, precision: str) -> int:
        """Bytes of a weight in the computation."""
        return FLOAT

    @classmethod
    def arithmetic(cls, config: Config, precision: str) -> str:
        """The strategy whose rounding a run has, which is that of DDP unless weights are cast to half precision."""
        if precision == "fp32" or cls.weight_bytes(config, precision) == FLOAT:
            return "ddp"
        return config.parallelism.strategy

    @classmethod
    def largest_shard(cls, sizes: ModelSizes, world_size: int) -> int:
        """Numbers of a sharded model that the rank with the most of them has."""
        return per_rank(sizes.parameters, world_size)

    @classmethod
    @abstractmethod
    def memory(cls, config: Config, sizes: ModelSizes, world_size: int, precision: str) -> list[MemoryItem]:
        """A rank's memory for weights, gradients, optimizer state and communication, without activations."""

    def before_microbatch(self, is_last: bool) -> None:  # noqa: B027 - most have nothing to do
        """Called before the forward pass of each microbatch of a training batch. A strategy that reduces gradients over
        ranks by itself may postpone that to the last one. Does nothing if Composer or the engine reduces them."""

    @abstractmethod
    def clip_gradients(self, max_norm: float) -> None:
        """Scales the gradients of the global batch to a norm of at most `max_norm`, unless the step does so."""

    @abstractmethod
    def gradient_norm(self) -> Tensor:
        """The norm, (), of the last step's gradients before clipping; the same on every rank."""

    def place_reference(self, reference: nn.Module) -> nn.Module:
        """The whole frozen reference model on this rank's device."""
        return reference.to(self.device)

    def shard_reference(self, reference: nn.Module) -> nn.Module:
        """The frozen reference model, sharded like the model. The config allows it only if weights are sharded."""
        raise NotImplementedError(f"{type(self).__name__} keeps weights whole")

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's parameters, including frozen ones, in the same order on every rank."""
        yield from self.model.named_parameters()

    def trainable_parts(self) -> Iterator[tuple[str, Tensor]]:
        """By name, this rank's float32 part of each trained weight; what is written into it is in the model. Only for
        strategies whose `StrategyFacts` say that weights can be averaged."""
        raise NotImplementedError(f"{type(self).__name__} keeps the float32 weights to itself")

    # The four below are collectives: every rank calls them with the same parameter.

    @abstractmethod
    def read_weight(self, parameter: nn.Parameter) -> Tensor:
        """The whole weight in full precision."""

    @abstractmethod
    def write_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Sets this rank's part of a weight from the whole weight, which every rank has."""

    @abstractmethod
    def read_moments(self, parameter: nn.Parameter) -> Moments:
        """The whole optimizer state of a parameter; empty before the first step and for a frozen one."""

    @abstractmethod
    def write_moments(self, parameter: nn.Parameter, moments: Moments) -> None:
        """Sets this rank's part of the optimizer state from the whole state, which every rank has."""

    def save_sharded(self, folder: Path) -> None:
        """Writes this rank's part of weights and optimizer state in the strategy's own format, if it has one."""
        raise NotImplementedError(f"{type(self).__name__} shards nothing")

    def shards_read(self, names: Collection[str], ranks: Collection[int]) -> set[str]:
        """Those files of `save_sharded`, of all ranks, that `load_sharded` reads on some of `ranks`."""
        return set(names)

    def load_sharded(self, folder: Path) -> None:
        """Reads what `save_sharded` wrote."""
        raise NotImplementedError(f"{type(self).__name__} shards nothing")


def placed(moments: Moments, device: torch.device) -> Moments:
    """Copies on `device`. `step` is copied too, because the optimizer's kernel reads it with the parameters."""
    return {key: value.to(device, copy=True) for key, value in moments.items()}
