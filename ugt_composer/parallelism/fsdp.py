"""FSDP2: each layer's weights, gradients and optimizer state are sharded over all ranks."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ugt_composer.parallelism.strategy import MakeOptimizer, Moments, Strategy, placed


class FsdpStrategy(Strategy):
    """
    Args:
        model: whole, on the host.
        make_optimizer: called with the sharded model.
        layers: modules that are gathered and freed one at a time; what they do not hold is gathered with `model`.
        device: of this rank.
        reshard_after_forward: False keeps a layer whole from forward to backward: more memory, less communication.
        param_dtype: of the gathered weights, None: as they are (float32).
        reduce_dtype: in which gradients are summed over ranks, None: as they come.
        cpu_offload: shards and optimizer state live in host memory.
    """

    def __init__(
        self,
        model: nn.Module,
        make_optimizer: MakeOptimizer,
        layers: list[nn.Module],
        device: torch.device,
        reshard_after_forward: bool,
        param_dtype: torch.dtype | None,
        reduce_dtype: torch.dtype | None,
        cpu_offload: bool,
    ):
        self.device = device
        self._mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        self._arguments: dict[str, Any] = {
            "mesh": self._mesh,
            "reshard_after_forward": reshard_after_forward,
            "mp_policy": MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype),
            "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda") if cpu_offload else OffloadPolicy(),
        }
        self._shard(model, layers)
        self.model = self.module = model
        self.optimizer = make_optimizer(model)
        # gloo has no average: its reduce-scatter returns the sum without a word.
        self._divisor = dist.get_world_size() if dist.get_backend() == "gloo" else 1
        self._norm = torch.zeros(())

    def _shard(self, model: nn.Module, layers: list[nn.Module]) -> None:
        for layer in layers:
            fully_shard(layer, **self._arguments)
        fully_shard(model, **self._arguments)

    def clip_gradients(self, max_norm: float) -> None:
        shards = [_local(parameter.grad) for parameter in self.model.parameters() if parameter.grad is not None]
        # Squares add up over shards; one number crosses the network.
        square = torch.nn.utils.get_total_norm(shards).to(self.device).square()
        dist.all_reduce(square)
        self._norm = square.sqrt() / self._divisor
        scale = (max_norm / (self._norm + 1e-6)).clamp(max=1.0) / self._divisor
        torch._foreach_mul_(shards, scale.to(shards[0].device))

    def gradient_norm(self) -> Tensor:
        return self._norm

    def shard_reference(self, reference: nn.Module) -> nn.Module:
        self._shard(reference, [])
        return reference

    def reshard(self) -> None:
        """Frees what an evaluation left whole: after a forward without a backward the root stays gathered."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def named_parameters(self):
        self.reshard()
        yield from self.model.named_parameters()

    def read_weight(self, parameter: nn.Parameter) -> Tensor:
        return self._whole(parameter.detach())

    def write_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        _local(parameter.detach()).copy_(self._part(parameter, value).to_local())

    def read_moments(self, parameter: nn.Parameter) -> Moments:
        return {key: self._whole(value) for key, value in self.optimizer.state.get(parameter, {}).items()}

    def write_moments(self, parameter: nn.Parameter, moments: Moments) -> None:
        parts = {key: self._part(parameter, value) if value.dim() else value for key, value in moments.items()}
        self.optimizer.state[parameter] = placed(parts, _local(parameter).device)

    def _whole(self, value: Tensor) -> Tensor:
        return DTensor.full_tensor(value.to(self.device)) if isinstance(value, DTensor) else value  # type: ignore[arg-type]

    def _part(self, parameter: nn.Parameter, value: Tensor) -> DTensor:
        assert isinstance(parameter, DTensor)
        # Every rank has the value, so that nothing is sent.
        return distribute_tensor(value.to(self.device), self._mesh, parameter.placements, src_data_rank=None)

    def save_sharded(self, folder: Path) -> None:
        import torch.distributed.checkpoint as dcp

        dcp.save(self._sharded_state(), checkpoint_id=folder)

    def load_sharded(self, folder: Path) -> None:
        import torch.distributed.checkpoint as dcp

        for parameter in self.model.parameters():
            if parameter.requires_grad:
                self.optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=_local(parameter).device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        dcp.load(self._sharded_state(), checkpoint_id=folder)

    def _sharded_state(self) -> dict[str, dict]:
        """What the files hold, by reference: loading writes into it."""
        weights, moments = {}, {}
        for name, parameter in self.named_parameters():
            weights[name] = parameter.detach()
            if parameter in self.optimizer.state:
                moments[name] = self.optimizer.state[parameter]
        return {"model": weights, "moments": moments}


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
