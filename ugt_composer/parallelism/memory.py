"""Shared by the strategies' estimates of a rank's memory; activations are estimated in `activations.py`.

Rajbhandari et al. (2020), ZeRO, section 3, for AdamW: two moments of four bytes per parameter; in addition, the buffers
of the libraries.
"""

from typing import NamedTuple

from torch import nn

FLOAT, HALF = 4, 2  # bytes of a number
DEVICE, HOST = "device", "host"
SMALL = 100_000  # DeepSpeed's default for stage3_param_persistence_threshold


class MemoryItem(NamedTuple):
    """Bytes of a rank, on its device or in host memory."""

    name: str
    bytes: int
    where: str = DEVICE


class ModelSizes(NamedTuple):
    """Numbers of parameters.

    Attributes:
        parameters, trainable: of the model.
        largest_layer: of the largest unit that is gathered at once.
        small: in tensors of fewer than SMALL elements, which ZeRO-3 does not shard.
    """

    parameters: int
    trainable: int
    largest_layer: int
    small: int = 0


def sizes_of(model: nn.Module, layers: list[nn.Module]) -> ModelSizes:
    """Args: layers: modules that are gathered one at a time; all other parameters are another unit."""
    numbers = [parameter.numel() for parameter in model.parameters()]
    of_layers = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    return ModelSizes(
        parameters=sum(numbers),
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        largest_layer=max(*of_layers, sum(numbers) - sum(of_layers)),
        small=sum(number for number in numbers if number < SMALL),
    )


def per_rank(number: int, world_size: int) -> int:
    """The largest shard of `number` elements that a rank has."""
    return -(-number // world_size)
