"""Weights and optimizer state as full tensors, for any strategy: streamed to and from rank 0's host memory.

One parameter at a time crosses the network, so that no other rank ever holds a full model beside its own shards.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from composer.utils import dist
from torch import Tensor

from ugt_composer.parallelism.strategy import Strategy


class HostMemory:
    """Buffers in host memory for copies of a model's tensors, reused from save to save.

    Copying into memory that was used before is several times faster, but overwrites the copies of the previous save,
    which must be written by then. Copies from a GPU go to pinned memory and are valid only after `wait_for_copies`.
    """

    def __init__(self) -> None:
        self._tensors: dict[tuple[str, ...], Tensor] = {}

    def copy(self, value: Tensor, *name: str) -> Tensor:
        buffer = self._tensors.get(name)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._tensors[name] = buffer
        return buffer.copy_(value.detach(), non_blocking=True)


def wait_for_copies(device: torch.device) -> None:
    """Waits for all copies from a device that were started."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def gather_weights(strategy: Strategy, memory: HostMemory | None = None) -> dict[str, Tensor]:
    """Every weight and buffer by name, float32, on rank 0; an empty dict on the others.

    Args:
        memory: buffers for the copies; None: new ones.
    """
    memory = memory or HostMemory()
    weights: dict[str, Tensor] = {}
    for name, parameter in strategy.named_parameters():
        value = strategy.read_weight(parameter)  # a collective
        if dist.get_global_rank() == 0:
            weights[name] = memory.copy(value, name)
    if dist.get_global_rank() == 0:
        weights |= {name: memory.copy(buffer, name) for name, buffer in buffers_of(strategy).items()}
    wait_for_copies(strategy.device)
    return weights


def gather_optimizer(strategy: Strategy, memory: HostMemory | None = None) -> dict[str, Any]:
    """{"moments": {parameter: {key: tensor}}, "groups": [settings of each group]}; the moments on rank 0 only."""
    memory = memory or HostMemory()
    moments: dict[str, dict[str, Tensor]] = {}
    for name, parameter in strategy.named_parameters():
        values = strategy.read_moments(parameter)  # a collective
        if values and dist.get_global_rank() == 0:
            moments[name] = {key: memory.copy(value, name, key) for key, value in values.items()}
    wait_for_copies(strategy.device)
    return {"moments": moments, "groups": group_settings(strategy)}


def group_settings(strategy: Strategy) -> list[dict[str, Any]]:
    """The settings of each parameter group, such as the learning rate, without its parameters."""
    return [{key: value for key, value in g.items() if key != "params"} for g in strategy.optimizer.param_groups]


def set_groups(strategy: Strategy, groups: list[dict[str, Any]]) -> None:
    for group, settings in zip(strategy.optimizer.param_groups, groups, strict=True):
        group.update(settings)


def scatter_weights(strategy: Strategy, weights: dict[str, Tensor] | None) -> None:
    """Puts rank 0's weights and buffers into the model. The other ranks pass None."""
    parameters, buffers = dict(strategy.named_parameters()), buffers_of(strategy)
    for name, value in _stream(strategy, weights):
        if name in buffers:
            buffers[name].copy_(value)
        else:
            strategy.write_weight(parameters[name], value)


def scatter_optimizer(strategy: Strategy, content: dict[str, Any] | None) -> None:
    """Puts rank 0's optimizer state into the optimizer. The other ranks pass None."""
    groups, moments = None, None
    if content is not None:
        groups = content["groups"]
        moments = {(name, key): value for name, values in content["moments"].items() for key, value in values.items()}
    set_groups(strategy, from_rank_0(groups))
    parameters = dict(strategy.named_parameters())
    for name, values in groupby(_stream(strategy, moments), key=lambda item: item[0][0]):
        strategy.write_moments(parameters[name], {key: value for (_, key), value in values})


def buffers_of(strategy: Strategy) -> dict[str, Tensor]:
    """The model's buffers; every strategy keeps them unsharded on each rank."""
    return dict(strategy.model.named_buffers())


def _stream(strategy: Strategy, tensors: dict[Any, Tensor] | None) -> Iterator[tuple[Any, Tensor]]:
    """Yields rank 0's (key, tensor) on every rank, one after the other; scalars are yielded on the CPU."""
    header = from_rank_0([(k, v.shape, v.dtype) for k, v in tensors.items()] if tensors is not None else None)
    for key, shape, dtype in header:
        value = torch.empty(shape, dtype=dtype) if tensors is None else tensors[key]
        sent = value.to(strategy.device)
        dist.broadcast(sent, src=0)
        yield key, sent if sent.dim() else sent.cpu()


def from_rank_0(value: Any) -> Any:
    """Rank 0's value on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
