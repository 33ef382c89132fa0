"""What a strategy does for a run: it places the model on the ranks, clips, and reads and writes whole tensors.

Everything above it (losses, callbacks, checkpoints) is the same for all strategies. Whole tensors are read and written
one parameter at a time, so that no rank holds a second model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
Moments = dict[str, Tensor]  # an optimizer's state of one parameter: tensors of its shape, and () ones such as `step`


class Strategy(ABC):
    """
    Attributes:
        model: the model as built; its parameters may be shards.
        module: what Composer calls `forward` on.
        optimizer: what Composer steps; its `param_groups` are the ones that schedules change.
        scaler: scales the loss in place of Composer's own; None leaves that to Composer.
        device: where a whole tensor is put together.
    """

    model: nn.Module
    module: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None = None
    device: torch.device

    def before_microbatch(self, is_last: bool) -> None:  # noqa: B027 - most have nothing to do
        """Called before the forward pass of each microbatch of a training batch. A strategy that reduces gradients
        over ranks by itself may leave that to the last one; nothing where Composer or the engine sees to it."""

    @abstractmethod
    def clip_gradients(self, max_norm: float) -> None:
        """Scales the gradients of the global batch to a norm of at most `max_norm`, or sees to it in the step."""

    @abstractmethod
    def gradient_norm(self) -> Tensor:
        """The norm, (), of the last step's gradients before clipping; the same on every rank."""

    def place_reference(self, reference: nn.Module) -> nn.Module:
        """The frozen reference model, whole on this rank's device."""
        return reference.to(self.device)

    def shard_reference(self, reference: nn.Module) -> nn.Module:
        """The frozen reference model, sharded as the model is. The config allows it where weights are sharded."""
        raise NotImplementedError(f"{type(self).__name__} keeps weights whole")

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """In the same order on every rank, frozen ones too."""
        yield from self.model.named_parameters()

    # The four below are collectives: every rank calls them with the same parameter.

    @abstractmethod
    def read_weight(self, parameter: nn.Parameter) -> Tensor:
        """The whole weight in full precision."""

    @abstractmethod
    def write_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Takes this rank's part of a whole weight that every rank has."""

    @abstractmethod
    def read_moments(self, parameter: nn.Parameter) -> Moments:
        """The whole optimizer state of a parameter; empty before the first step and for a frozen one."""

    @abstractmethod
    def write_moments(self, parameter: nn.Parameter, moments: Moments) -> None:
        """Takes this rank's part of an optimizer state that every rank has."""

    def save_sharded(self, folder: Path) -> None:
        """Writes this rank's part of weights and optimizer state in the strategy's own format, if it has one."""
        raise NotImplementedError(f"{type(self).__name__} shards nothing")

    def load_sharded(self, folder: Path) -> None:
        """Reads what `save_sharded` wrote."""
        raise NotImplementedError(f"{type(self).__name__} shards nothing")


def placed(moments: Moments, device: torch.device) -> Moments:
    """Copies for an optimizer on `device`, its `step` too: one kernel reads it with the parameters."""
    return {key: value.to(device, copy=True) for key, value in moments.items()}
