"""DeepSpeed ZeRO-0 to ZeRO-3 under Composer, through a small adapter around DeepSpeed's engine.

With `managed_gradient_accumulation: false` every `engine.step()` ends a batch, as in Composer's loop. Composer's
optimizer is an adapter that calls the engine's step, and its loss scaler one that calls the engine's backward pass.
"""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ugt_composer.config.checks import device_batch_size
from ugt_composer.config.schema import Config
from ugt_composer.errors import UserError
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.deepspeed_config import PREFIX, engine_config, select
from ugt_composer.parallelism.deepspeed_patches import (
    PATCHES,
    forget_autocast,
    import_deepspeed,
    is_flat,
    link_moments,
    load_loss_scale_state,
    loss_scale_state,
    partitions,
    quiet,
    shard_of,
    write_shard,
)
from ugt_composer.parallelism.deepspeed_schema import check_user_keys
from ugt_composer.parallelism.device import own_device
from ugt_composer.parallelism.memory import DEVICE, FLOAT, HALF, HOST, MemoryItem, ModelSizes, per_rank
from ugt_composer.parallelism.strategy import MakeOptimizer, Moments, Strategy, placed
from ugt_composer.patches import WRITTEN_FOR, check_patches
from ugt_composer.torch_patches import keep_scaling_out_of_step

ENGINE_TAG = "engine"
MOMENTS = ("exp_avg", "exp_avg_sq")
GATHERED_AT_ONCE = 10**9  # parameters that ZeRO-3 gathers at once by default; smaller limits had no effect


class DeepSpeedStrategy(Strategy):
    """DeepSpeed's engine at ZeRO stage 0 to 3.

    Args:
        model: the whole model, on the CPU.
        make_optimizer: called with the model.
        settings: DeepSpeed's configuration, see `engine_config`.
        device: of this rank.
    """

    def __init__(self, model: nn.Module, make_optimizer: MakeOptimizer, settings: dict[str, Any], device: torch.device):
        deepspeed = import_deepspeed(device)
        check_patches("deepspeed", PATCHES)
        self.model = model
        self.device = device
        self.zero_stage = settings["zero_optimization"]["stage"]
        self._settings = settings
        self._base = make_optimizer(model)
        self._linked = False
        self._norm: Tensor | None = None
        if self.zero_stage == 0:
            # Gradients are reduced and unscaled within the engine's step, whose own clipping does not return the norm.
            self._max_norm = settings["gradient_clipping"]
            settings = {**settings, "gradient_clipping": 0.0}
            self._base.register_step_pre_hook(self._clip_in_step)
            keep_scaling_out_of_step(self._base)  # so that the hook sees unscaled gradients
        forget_autocast(deepspeed)
        with refusals(), quiet():
            self.engine, *_ = deepspeed.initialize(
                model=model, optimizer=self._base, config=settings, dist_init_required=False
            )
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                # The engine casts buffers too; half precision is for the parameters only.
                setattr(module, name, buffer.to(device, torch.float32 if buffer.is_floating_point() else None))
        self.module = EngineModule(self.engine)
        self.optimizer = EngineOptimizer(self._base, self.engine)
        self.scaler = EngineLossScaler(self.engine)

    @classmethod
    def build(
        cls, config: Config, model: nn.Module, network: UGT, make_optimizer: MakeOptimizer, precision: str
    ) -> Self:
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        settings = cls.settings(config, precision, dist.get_world_size(), num_parameters)
        return cls(model, make_optimizer, settings, own_device())

    @classmethod
    def settings(cls, config: Config, precision: str, world_size: int, num_parameters: int) -> dict[str, Any]:
        """The configuration of the engine. UserError if one of the user's keys contradicts another one."""
        deepspeed = config.parallelism.deepspeed
        return engine_config(
            deepspeed.zero_stage,
            deepspeed.offload_optimizer,
            deepspeed.offload_param,
            precision,
            config.max_grad_norm,
            device_batch_size(config, world_size),
            world_size,
            num_parameters,
            deepspeed.config,
        )

    @classmethod
    def check(cls, config: Config, precision: str, world_size: int) -> None:
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError(
                "parallelism.strategy is deepspeed, which is not installed; "
                f"pip install deepspeed=={WRITTEN_FOR['deepspeed']}, or set parallelism.strategy=fsdp"
            )
        accelerator, available = os.environ.get("DS_ACCELERATOR"), "cuda" if torch.cuda.is_available() else "cpu"
        if accelerator not in (None, available):
            raise UserError(
                f"DS_ACCELERATOR is {accelerator!r}; expected {available}, which this machine has, or to be unset"
            )
        settings = cls.settings(config, precision, world_size, num_parameters=1)
        if config.parallelism.deepspeed.config:
            check_user_keys(settings, config.parallelism.deepspeed.config)

    @classmethod
    def describe(cls, config: Config) -> str:
        return f"deepspeed, zero_stage {config.parallelism.deepspeed.zero_stage}"

    @classmethod
    def composer_precision(cls, precision: str) -> str:
        return "fp32"

    @classmethod
    def casts_model(cls, config: Config) -> bool:
        return config.parallelism.deepspeed.zero_stage > 0

    @classmethod
    def weight_bytes(cls, config: Config, precision: str) -> int:
        return HALF if precision != "fp32" and cls.casts_model(config) else FLOAT

    @classmethod
    def memory(cls, config: Config, sizes: ModelSizes, world_size: int, precision: str) -> list[MemoryItem]:
        settings = cls.settings(config, precision, world_size, sizes.parameters)
        deepspeed, number = config.parallelism.deepspeed, cls.weight_bytes(config, precision)
        if deepspeed.zero_stage == 0:
            return [
                MemoryItem("weights", FLOAT * sizes.parameters),
                MemoryItem("gradients", FLOAT * sizes.trainable),
                MemoryItem("optimizer", 2 * FLOAT * sizes.trainable),
            ]
        gradient, sent = (
            FLOAT if select(settings, key) in ("fp32", "float32", "float") else number
            for key in ("data_types.grad_accum_dtype", "communication_data_type")
        )
        trainable = per_rank(sizes.trainable, world_size)
        optimizer_where = HOST if deepspeed.offload_optimizer != "none" else DEVICE
        bucket = min(settings["zero_optimization"]["reduce_bucket_size"], sizes.parameters)
        weights = MemoryItem("weights", number * sizes.parameters)
        gradients = [MemoryItem("gradients", gradient * (sizes.trainable if deepspeed.zero_stage == 1 else trainable))]
        buckets, gathered = number * bucket, []
        if deepspeed.zero_stage == 1 and (widest := max(gradient, sent)) > number:
            # Besides their sum over microbatches, of which an all-reduce copies a bucket.
            gradients.append(MemoryItem("gradients of a microbatch", number * sizes.trainable, reduces=True))
            buckets = widest * bucket
        if deepspeed.zero_stage == 2:
            buckets *= 2  # the bucket, and the copy of it that is all-reduced
        if deepspeed.zero_stage == 3:
            where = HOST if deepspeed.offload_param != "none" else DEVICE
            sharded = per_rank(sizes.parameters, world_size) + sizes.small
            weights = MemoryItem("weights", number * sharded, where)
            gathered = [
                MemoryItem("gathered", number * min(GATHERED_AT_ONCE, sizes.parameters)),
                MemoryItem("reduced at once", number * sizes.largest_unit(1, trained_only=True)),
            ]
        return [
            weights,
            *gradients,
            MemoryItem("master weights", FLOAT * trainable, optimizer_where),
            MemoryItem("optimizer", 2 * FLOAT * trainable, optimizer_where),
            MemoryItem("buckets", buckets, reduces=deepspeed.zero_stage < 3),
            *gathered,
        ]

    def clip_gradients(self, max_norm: float) -> None:
        """Does nothing: gradients are clipped within the engine's step."""

    def _clip_in_step(self, *_: Any) -> None:
        self._norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._max_norm)

    def gradient_norm(self) -> Tensor:
        norm = self.engine.get_global_grad_norm() if self.zero_stage > 0 else self._norm
        return torch.as_tensor(math.nan if norm is None else norm)

    def shard_reference(self, reference: nn.Module) -> nn.Module:
        import deepspeed

        settings = {key: self._settings[key] for key in ("train_micro_batch_size_per_gpu", "bf16", "fp16")}
        settings["zero_optimization"] = {"stage": self.zero_stage}
        with quiet():
            engine, *_ = deepspeed.initialize(model=reference, config=settings, dist_init_required=False)
        return EngineModule(engine)

    def place_reference(self, reference: nn.Module) -> nn.Module:
        dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16}
        dtype = next((dtype for key, dtype in dtypes.items() if self._settings[key]["enabled"]), torch.float32)
        # In the policy's dtype: otherwise the DPO log-ratios would not start at exactly 0.
        return reference.to(self.device, dtype)

    def read_weight(self, parameter: nn.Parameter) -> Tensor:
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        whole = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
        if whole is not None:
            return whole
        if self.zero_stage == 3:
            with deepspeed.zero.GatheredParameters([parameter]):
                return parameter.detach().float().clone()
        return parameter.detach().float()

    def write_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        if self.zero_stage == 3:
            part = shard_of(parameter, value)
            write_shard(parameter, part)
            if parameter.requires_grad:
                safe_set_local_fp32_param(parameter, part)
            if parameter.numel() == value.numel():  # small parameters stay whole on every rank
                parameter.data.copy_(value)
            return
        parameter.detach().copy_(value)
        if parameter.requires_grad:
            safe_set_full_fp32_param(parameter, value)

    def read_moments(self, parameter: nn.Parameter) -> Moments:
        from deepspeed.utils import safe_get_full_optimizer_state

        if not parameter.requires_grad or not self._base.state:
            return {}
        if not is_flat(parameter):
            return dict(self._base.state.get(parameter, {}))
        self._link_moments()
        moments = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        return {"step": next(iter(self._base.state.values()))["step"], **moments}

    def write_moments(self, parameter: nn.Parameter, moments: Moments) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if not is_flat(parameter):
            self._base.state[parameter] = placed(moments, parameter.device)
            return
        self.allocate_moments()
        for state in self._base.state.values():
            state["step"].copy_(moments["step"])
        for key in MOMENTS:
            if self.zero_stage == 3:
                safe_set_local_optimizer_state(parameter, shard_of(parameter, moments[key]), key)
            else:
                safe_set_full_optimizer_state(parameter, moments[key], key)

    def allocate_moments(self) -> None:
        """Allocates the optimizer's state as zeros and links it, which DeepSpeed does only in the first step."""
        for _, flat in partitions(self.engine.optimizer, self.zero_stage):
            if flat not in self._base.state:
                step = torch.zeros((), dtype=torch.float32, device=flat.device)
                self._base.state[flat] = {"step": step, **{key: torch.zeros_like(flat) for key in MOMENTS}}
        self._link_moments()

    def _link_moments(self) -> None:
        if not self._linked and self.zero_stage < 3:
            link_moments(self.engine.optimizer, self.zero_stage, self._base.state)
            self._linked = True

    def save_sharded(self, folder: Path) -> None:
        with quiet():
            self.engine.save_checkpoint(str(folder), tag=ENGINE_TAG, save_latest=False)

    def shards_read(self, names: Collection[str], ranks: Collection[int]) -> set[str]:
        """A file with a rank in its name is read on that rank only, the others on all."""
        ranks_in_names = {name: re.search(r"zero_pp_rank_(\d+)_", name) for name in names}
        return {name for name, match in ranks_in_names.items() if match is None or int(match.group(1)) in ranks}

    def load_sharded(self, folder: Path) -> None:
        groups = self._base.param_groups
        with quiet():
            path, _ = self.engine.load_checkpoint(str(folder), tag=ENGINE_TAG, load_lr_scheduler_states=False)
        if path is None:
            raise UserError(
                f"{folder}: DeepSpeed finds no checkpoint in it; copy the checkpoint again with all its files, or "
                "start from its run's latest/ with init_from"
            )
        self._linked = False
        # Loading has created new groups and a new state, but schedules change the old groups.
        for old, new in zip(groups, self._base.param_groups, strict=True):
            old.update(new)
        self._base.param_groups = groups
        self.optimizer.state = self._base.state


class EngineModule(nn.Module):
    """An engine as Composer's model. It hides its parameters: Composer would wrap a module with parameters in DDP."""

    def __init__(self, engine: Any):
        super().__init__()
        self._engine = (engine,)  # a tuple hides it from nn.Module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine[0](*args, **kwargs)

    def train(self, mode: bool = True) -> "EngineModule":
        self._engine[0].train(mode)
        return super().train(mode)


class EngineOptimizer(torch.optim.Optimizer):
    """An optimizer whose step is the engine's. Groups and state are those of the optimizer that the engine wraps."""

    def __init__(self, base: torch.optim.Optimizer, engine: Any):
        # The base class's constructor is not called: it would register the engine's partitions as parameters.
        self.param_groups, self.state, self.defaults = base.param_groups, base.state, base.defaults
        self._engine = engine

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Does nothing: the engine's step clears the gradients."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self._engine.step()


class EngineLossScaler(torch.amp.GradScaler):
    """`scale` returns an `EngineLoss`, whose backward pass is the engine's. The engine scales, unscales and skips steps
    itself; its state is returned in the form of PyTorch's GradScaler."""

    def __init__(self, engine: Any):
        super().__init__(device="cpu", enabled=False)  # it scales nothing itself
        self._engine = engine

    def scale(self, outputs: Tensor) -> "EngineLoss":  # type: ignore[override]
        return EngineLoss(self._engine, outputs)

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Does nothing: the engine unscales in its step."""

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        optimizer.step()

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Does nothing: the engine's step has updated the scale."""

    def is_enabled(self) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        return loss_scale_state(self._engine)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        load_loss_scale_state(self._engine, state_dict)


class EngineLoss:
    """A loss whose backward pass is the engine's. It has only the methods that Composer calls on a scaled loss."""

    def __init__(self, engine: Any, loss: Tensor):
        self._engine = engine
        self._loss = loss

    def mul_(self, factor: float) -> "EngineLoss":
        self._loss = self._loss * factor
        return self

    def backward(self, create_graph: bool = False) -> None:
        self._engine.backward(self._loss)


@contextlib.contextmanager
def refusals():
    """Turns errors of DeepSpeed's own checks of its configuration into a UserError."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        message = " ".join(line.strip() for line in str(error).splitlines() if "https://" not in line)
        raise UserError(f"{PREFIX}: DeepSpeed refuses the configuration: {message}") from error
