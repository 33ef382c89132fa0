"""Shared by the strategies' estimates of a rank's memory; activations are estimated in `activations.py`.

Rajbhandari et al. (2020), ZeRO, section 3, for AdamW: two moments of four bytes per parameter; in addition, the buffers
of the libraries.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

FLOAT, HALF = 4, 2  # bytes of a number
DEVICE, HOST = "device", "host"
SMALL = 100_000  # DeepSpeed's default for stage3_param_persistence_threshold


class MemoryItem(NamedTuple):
    """Bytes of a rank, on its device or in host memory.

    Attributes:
        reduces: exist while gradients are reduced in the backward pass, when part of the activations is freed.
    """

    name: str
    bytes: int
    where: str = DEVICE
    reduces: bool = False


class ParameterSize(NamedTuple):
    """Of a parameter whose first dimension FSDP shards: that of experts, (E, D, F), counts as E · D rows of F."""

    rows: int
    width: int
    is_trained: bool

    @property
    def numbers(self) -> int:
        return self.rows * self.width


class ModelSizes(NamedTuple):
    """Numbers of parameters.

    Attributes:
        units: the parameters of each unit that is gathered at once.
    """

    units: tuple[tuple[ParameterSize, ...], ...]

    @property
    def tensors(self) -> list[ParameterSize]:
        return [tensor for unit in self.units for tensor in unit]

    @property
    def parameters(self) -> int:
        return sum(tensor.numbers for tensor in self.tensors)

    @property
    def trainable(self) -> int:
        return sum(tensor.numbers for tensor in self.tensors if tensor.is_trained)

    @property
    def small(self) -> int:
        """In tensors of fewer than SMALL elements, which ZeRO-3 does not shard."""
        return sum(tensor.numbers for tensor in self.tensors if tensor.numbers < SMALL)

    def in_whole_rows(self, world_size: int, trained_only: bool = False) -> int:
        """The largest shard of a rank, if each parameter is split between its rows: FSDP2's. Of a parameter with fewer
        rows than ranks, some ranks have one row and others nothing."""
        return sum(_in_whole_rows(unit, world_size, trained_only) for unit in self.units)

    def largest_unit(self, world_size: int, trained_only: bool = False) -> int:
        """Of the largest unit when it is gathered from such shards, all of them as large as the largest."""
        return max(world_size * _in_whole_rows(unit, world_size, trained_only) for unit in self.units)


def sizes_of(model: nn.Module, layers: list[nn.Module]) -> ModelSizes:
    """Args: layers: modules that are gathered one at a time; all other parameters are another unit."""
    of_layers = [list(layer.parameters()) for layer in layers]
    in_layers = {id(parameter) for layer in of_layers for parameter in layer}
    others = [parameter for parameter in model.parameters() if id(parameter) not in in_layers]
    units = [unit for unit in (*of_layers, others) if unit]
    return ModelSizes(tuple(tuple(_size_of(parameter) for parameter in unit) for unit in units))


def per_rank(number: int, world_size: int) -> int:
    """The largest shard of `number` elements that a rank has."""
    return -(-number // world_size)


def _size_of(parameter: nn.Parameter) -> ParameterSize:
    *first, width = parameter.shape if parameter.dim() > 1 else (*parameter.shape, 1)
    return ParameterSize(math.prod(first), width, parameter.requires_grad)


def _in_whole_rows(unit: Iterable[ParameterSize], world_size: int, trained_only: bool) -> int:
    tensors = [tensor for tensor in unit if tensor.is_trained or not trained_only]
    return sum(tensor.width * per_rank(tensor.rows, world_size) for tensor in tensors)
