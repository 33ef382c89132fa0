"""FSDP2: each layer's weights, gradients and optimizer state are sharded over all ranks.

N ranks, E experts, D width, F expert width.
"""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ugt_composer.config.checks import device_batch_size
from ugt_composer.config.schema import Config
from ugt_composer.errors import UserError
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.device import own_device
from ugt_composer.parallelism.memory import DEVICE, FLOAT, HALF, HOST, MemoryItem, ModelSizes
from ugt_composer.parallelism.strategy import MakeOptimizer, Moments, Strategy, placed
from ugt_composer.patches import check_patches
from ugt_composer.torch_patches import FSDP_PATCHES, forget_forward_order

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMPUTE_DTYPES = {"amp_bf16": torch.bfloat16, "amp_fp16": torch.float16, "fp32": None}
LAYERS_AT_ONCE = 2  # layers that FSDP has gathered at the same time: the current one and the next


class FsdpStrategy(Strategy):
    """
    Gathered weights have `param_dtype`, but inputs are not cast: under autocast the residual stream stays float32 as
    under DDP, and so do the reference's log-probabilities in a batch.

    Args:
        model: the whole model, on the CPU.
        make_optimizer: called with the sharded model.
        layers: modules that are gathered and freed one at a time; all other parameters are gathered with `model`.
        device: of this rank.
        reshard_after_forward: False keeps all layers gathered from the first forward pass of a batch to its last
            backward pass: more memory, and weights are gathered once per batch instead of twice per microbatch.
        param_dtype: of the gathered weights; None: not cast (float32).
        reduce_dtype: dtype in which gradients are summed over ranks and, unless they are reduced every microbatch, over
            microbatches.
        cpu_offload: shards and optimizer state are in host memory.
        reduce_every_microbatch: False reduces gradients once per batch; until then every rank accumulates the gradients
            of the whole model on its device, also with `cpu_offload`: 4 bytes per trainable parameter in float32. True
            reduces them after each microbatch's backward pass, with as many times the traffic as there are
            microbatches; no more than one layer's gradients are then unsharded.
    """

    def __init__(
        self,
        model: nn.Module,
        make_optimizer: MakeOptimizer,
        layers: list[nn.Module],
        device: torch.device,
        reshard_after_forward: bool,
        param_dtype: torch.dtype | None,
        reduce_dtype: torch.dtype,
        cpu_offload: bool,
        reduce_every_microbatch: bool,
    ):
        check_patches("torch", FSDP_PATCHES)
        self.device = device
        self._reshard_after_forward = reshard_after_forward
        self._reduce_every_microbatch = reduce_every_microbatch
        self._param_dtype = param_dtype
        self._mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype, cast_forward_inputs=False)
        self._arguments: dict[str, Any] = {
            "mesh": self._mesh,
            "mp_policy": policy,
            "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda") if cpu_offload else OffloadPolicy(),
        }
        self._layer_types = tuple({type(layer) for layer in layers})  # sharding a layer changes its type
        shapes = flatten_experts(model)
        shard(model, layers, reshard_after_forward, **self._arguments)
        self._shapes = {p: shapes[name] for name, p in model.named_parameters() if name in shapes}
        self._divisor = gradient_divisor(self._mesh, device, policy)
        self.model = self.module = model
        self.optimizer = make_optimizer(model)
        self._norm = torch.zeros(())

    @classmethod
    def build(
        cls, config: Config, model: nn.Module, network: UGT, make_optimizer: MakeOptimizer, precision: str
    ) -> Self:
        fsdp = config.parallelism.fsdp
        return cls(
            model,
            make_optimizer,
            [*network.encoder.layers, *network.decoder.layers],
            own_device(),
            fsdp.reshard_after_forward,
            DTYPES[fsdp.param_dtype] if fsdp.param_dtype else COMPUTE_DTYPES[precision],
            DTYPES[fsdp.reduce_dtype or "float32"],
            fsdp.cpu_offload,
            fsdp.reduce_every_microbatch,
        )

    @classmethod
    def weight_bytes(cls, config: Config, precision: str) -> int:
        """Bytes of a gathered weight."""
        half = precision != "fp32"
        if config.parallelism.fsdp.param_dtype is not None:
            half = config.parallelism.fsdp.param_dtype != "float32"
        return HALF if half else FLOAT

    @classmethod
    def largest_shard(cls, sizes: ModelSizes, world_size: int) -> int:
        return sizes.in_whole_rows(world_size)

    @classmethod
    def memory(cls, config: Config, sizes: ModelSizes, world_size: int, precision: str) -> list[MemoryItem]:
        fsdp, trainable = config.parallelism.fsdp, sizes.in_whole_rows(world_size, trained_only=True)
        where = HOST if fsdp.cpu_offload else DEVICE
        weights, layer = cls.largest_shard(sizes, world_size), sizes.largest_unit(world_size)
        at_once = world_size * weights  # all layers, during the whole batch
        if fsdp.reshard_after_forward:
            at_once = min(LAYERS_AT_ONCE * layer, at_once)
        gradient = HALF if fsdp.reduce_dtype in ("bfloat16", "float16") else FLOAT
        microbatch = config.device_train_microbatch_size
        # With "auto" there may be several microbatches.
        accumulates = isinstance(microbatch, str) or device_batch_size(config, world_size) > microbatch
        items = [
            MemoryItem("weights", FLOAT * weights, where),
            MemoryItem("gradients", FLOAT * trainable, where),
            MemoryItem("optimizer", 2 * FLOAT * trainable, where),
            MemoryItem("gathered", at_once * cls.weight_bytes(config, precision)),
        ]
        if config.ema_decay is not None:
            items.append(MemoryItem("average of the weights", FLOAT * trainable, where))
        reduced = sizes.largest_unit(world_size, trained_only=True)
        if accumulates and not fsdp.reduce_every_microbatch:
            # Until the last microbatch every rank accumulates the gradients of the whole model on its device, for any
            # number of ranks and with offloading too.
            items.append(MemoryItem("whole gradients", gradient * sizes.trainable))
            return [*items, MemoryItem("reduced at once", gradient * reduced)]
        # Autograd's gradients, in the dtype of the weights, and what is reduced.
        return [*items, MemoryItem("reduced at once", (cls.weight_bytes(config, precision) + gradient) * reduced)]

    def before_microbatch(self, is_last: bool) -> None:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(is_last or self._reduce_every_microbatch)
        self.model.set_reshard_after_backward(is_last or self._reshard_after_forward)

    def clip_gradients(self, max_norm: float) -> None:
        shards = [_local(parameter.grad) for parameter in self.model.parameters() if parameter.grad is not None]
        # The squares of the shards' norms are summed over the ranks: an all-reduce of one number.
        square = torch.nn.utils.get_total_norm(shards).to(self.device).square()
        dist.all_reduce(square)
        self._norm = square.sqrt() / self._divisor
        scale = (max_norm / (self._norm + 1e-6)).clamp(max=1.0) / self._divisor
        torch._foreach_mul_(shards, scale.to(shards[0].device))

    def gradient_norm(self) -> Tensor:
        return self._norm

    def place_reference(self, reference: nn.Module) -> nn.Module:
        # The dtype of the policy's gathered weights, otherwise the difference of the two starts as rounding error.
        return reference.to(self.device, self._param_dtype)

    def shard_reference(self, reference: nn.Module) -> nn.Module:
        layers = [module for module in reference.modules() if isinstance(module, self._layer_types)]
        flatten_experts(reference)
        shard(reference, layers, True, **self._arguments)
        reference.register_forward_hook(_free_after_forward)
        return reference

    def reshard(self) -> None:
        """Frees weights that an evaluation left gathered: after a forward without a backward the root's stay so."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def named_parameters(self):
        self.reshard()
        yield from self.model.named_parameters()

    def trainable_parts(self) -> Iterator[tuple[str, Tensor]]:
        yield from ((name, _local(weight.detach())) for name, weight in self.named_parameters() if weight.requires_grad)

    def read_weight(self, parameter: nn.Parameter) -> Tensor:
        return self._whole(parameter, parameter.detach())

    def write_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        _local(parameter.detach()).copy_(self._part(parameter, value).to_local())

    def read_moments(self, parameter: nn.Parameter) -> Moments:
        state = self.optimizer.state.get(parameter, {})
        return {key: self._whole(parameter, value) if value.dim() else value for key, value in state.items()}

    def write_moments(self, parameter: nn.Parameter, moments: Moments) -> None:
        parts = {key: self._part(parameter, value) if value.dim() else value for key, value in moments.items()}
        self.optimizer.state[parameter] = placed(parts, _local(parameter).device)

    def _whole(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """Gathers a value that is sharded like its parameter, in the shape that the parameter had before sharding."""
        assert isinstance(value, DTensor)
        whole = DTensor.full_tensor(value.to(self.device))  # type: ignore[arg-type]
        return whole.view(self._shapes.get(parameter, value.shape))

    def _part(self, parameter: nn.Parameter, value: Tensor) -> DTensor:
        assert isinstance(parameter, DTensor)
        # Every rank has the value, so nothing is sent.
        flat = value.to(self.device).view(parameter.shape)
        return distribute_tensor(flat, self._mesh, parameter.placements, src_data_rank=None)

    def save_sharded(self, folder: Path) -> None:
        import torch.distributed.checkpoint as dcp

        dcp.save(self._sharded_state(), checkpoint_id=folder)

    def shards_read(self, names: Collection[str], ranks: Collection[int]) -> set[str]:
        """A file with a rank in its name is read on that rank only, the others on all."""
        ranks_in_names = {name: re.search(r"(?:^|/)__(\d+)_\d+\.distcp$", name) for name in names}
        return {name for name, match in ranks_in_names.items() if match is None or int(match.group(1)) in ranks}

    def load_sharded(self, folder: Path) -> None:
        """Reads what `save_sharded` wrote.

        Raises:
            UserError: a file is missing; the shards are of tensors of other shapes, such as those of versions that
                sharded whole experts.
        """
        import torch.distributed.checkpoint as dcp

        written = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        for name, parameter in self.named_parameters():
            tensor = written.get(f"model.{name}")
            if isinstance(tensor, dcp.metadata.TensorStorageMetadata) and tensor.size != parameter.shape:
                raise UserError(
                    f"{folder}: {name} was sharded as {tuple(tensor.size)}, this version shards it as "
                    f"{tuple(parameter.shape)}; start from the run's latest/ with init_from, or resume from a "
                    "checkpoint written with checkpoint.sharded=false"
                )
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                self.optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=_local(parameter).device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        state, steps = self._sharded_state(), f"steps.{dist.get_rank()}"
        if steps not in written:  # of an earlier version: with the moments, in the file of any rank
            del state["steps"]
            for name, parameter in self.named_parameters():
                if parameter in self.optimizer.state:
                    state["moments"][name] = self.optimizer.state[parameter]
        try:
            dcp.load(state, checkpoint_id=folder)
        except CheckpointException as error:  # raised on all ranks for an error on any of them
            missing = [cause for cause, _ in error.failures.values() if isinstance(cause, FileNotFoundError)]
            if not missing:
                raise
            raise UserError(
                f"{missing[0].filename} is missing: of a checkpoint that an earlier version wrote, every rank reads "
                f"all files; copy them to {folder} on every machine"
            ) from None
        if steps in written:
            for one, step in zip(self._states(), state["steps"][str(dist.get_rank())], strict=True):
                one["step"].copy_(step)

    def _sharded_state(self) -> dict[str, dict]:
        """The tensors to save, not copied except for the optimizer's steps: loading writes into them.

        PyTorch would save what all ranks have in the file of one of them. The steps have a name for each rank, so that
        a rank's file has all that it reads.
        """
        weights, moments = {}, {}
        for name, parameter in self.named_parameters():
            weights[name] = parameter.detach()
            if parameter in self.optimizer.state:
                values = self.optimizer.state[parameter]
                moments[name] = {key: value for key, value in values.items() if value.dim()}
        state: dict[str, dict] = {"model": weights, "moments": moments}
        if moments:
            state["steps"] = {str(dist.get_rank()): torch.stack([one["step"].cpu() for one in self._states()])}
        return state

    def _states(self) -> list[dict[str, Tensor]]:
        """The optimizer's state of each parameter that has one."""
        return [self.optimizer.state[p] for _, p in self.named_parameters() if p in self.optimizer.state]


def flatten_experts(model: nn.Module) -> dict[str, torch.Size]:
    """Replaces each parameter of shape (E, D, F) by its view (E · D, F): FSDP2 shards the first dimension, and E is too
    small for many ranks. Returns the original shapes by name. The code that uses the parameters takes either shape."""
    shapes = {}
    for prefix, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dim() == 3:
                shapes[f"{prefix}.{name}" if prefix else name] = parameter.shape
                flat = nn.Parameter(parameter.detach().flatten(0, 1), requires_grad=parameter.requires_grad)
                setattr(module, name, flat)
    return shapes


def shard(model: nn.Module, layers: list[nn.Module], reshard_after_forward: bool, **arguments: Any) -> None:
    """Shards each layer separately, and all other parameters with `model`. These stay gathered from their forward pass
    to the end of the backward pass, which begins with them."""
    for layer in layers:
        fully_shard(layer, reshard_after_forward=reshard_after_forward, **arguments)
    fully_shard(model, reshard_after_forward=False, **arguments)


def gradient_divisor(mesh: DeviceMesh, device: torch.device, policy: MixedPrecisionPolicy) -> int:
    """What FSDP2's gradients have to be divided by to become means over the ranks: 1, or N if the backend returns the
    sum when asked for the mean, as gloo does in some versions of PyTorch.

    It depends on backend, version and `reduce_dtype`, so it is measured: with a gradient of N numbers, 1 on every rank.
    """
    ranks = mesh.size()
    probe = nn.Linear(1, ranks, bias=False, device=device)
    fully_shard(probe, mesh=mesh, mp_policy=policy)
    probe(torch.ones(1, 1, device=device, dtype=policy.param_dtype)).sum().backward()
    assert isinstance(probe.weight.grad, DTensor)
    return ranks if float(probe.weight.grad.to_local()) > 1.5 else 1


def _free_after_forward(model: nn.Module, *_: Any) -> None:
    """Frees the root's gathered weights and the order of all forward passes, which FSDP2 keeps for a backward pass that
    never comes."""
    assert isinstance(model, FSDPModule)
    model.reshard()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            forget_forward_order(module)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
