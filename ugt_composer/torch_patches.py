"""Private code of PyTorch that is subclassed or called; see `ugt_composer/patches.py` and `docs/architecture.md`."""

import datetime
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.utils.data._utils import MP_STATUS_CHECK_INTERVAL
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ugt_composer.patches import Patch


class WatchedWorkers(_MultiProcessingDataLoaderIter):
    """Checks for dead workers every five seconds, with a timeout too, and has a separate timeout for the first batch.

    With a timeout, PyTorch's iterator checks for dead workers only when the timeout is over. The first batch takes
    longer, because the order of the epoch is computed before it.
    """

    def __init__(self, loader: Any, start_timeout: float):
        super().__init__(loader)
        self._later_timeout, self._timeout = self._timeout, start_timeout

    def _try_get_data(self, timeout: float = MP_STATUS_CHECK_INTERVAL) -> tuple[bool, Any]:
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            is_here, data = super()._try_get_data(max(0.0, min(left, MP_STATUS_CHECK_INTERVAL)))
            if is_here:
                self._timeout = self._later_timeout
            if is_here or left <= MP_STATUS_CHECK_INTERVAL:
                return is_here, data


def own_groups() -> Iterator[tuple[dist.ProcessGroup, str]]:
    """The process groups of this rank, including those created by libraries, each with the name of its backend."""
    if dist.is_initialized():
        for group, (backend, _) in list(distributed_c10d._world.pg_map.items()):
            if distributed_c10d._rank_not_in_group(group) is False:
                yield group, backend


def set_timeout(group: dist.ProcessGroup, seconds: float) -> None:
    """Changes the timeout of a process group. In PyTorch 2.7 this has no effect on a gloo group."""
    distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=seconds), group)


def nccl_error(group: dist.ProcessGroup) -> str | None:
    """NCCL's error of a group: "timeout", "communication error" or "remote error"; None if there is none."""
    from torch._C._distributed_c10d import ErrorType

    error = group._get_backend(torch.device("cuda")).get_error()
    if error == ErrorType.SUCCESS:
        return None
    return error.name.lower().replace("comm_", "communication_").replace("_", " ")


def forget_forward_order(module: Any) -> None:
    """Frees the order of all forward passes, which an FSDP2 module keeps for a backward pass that never comes."""
    group = module._get_fsdp_state()._fsdp_param_group
    if group is not None:
        group._post_forward_indices.clear()
        group.comm_ctx.post_forward_order.clear()


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 products. Without them, float32 products are faster."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def keep_scaling_out_of_step(optimizer: torch.optim.Optimizer) -> None:
    """Makes a GradScaler unscale the gradients before the optimizer's step and not within the optimizer's kernel."""
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def recomputed_lrs(scheduler: torch.optim.lr_scheduler.LRScheduler) -> list[float]:
    """The learning rates at the scheduler's step from its `base_lrs`; it returns them as the last ones from now on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="To get the last learning rate")
        scheduler._last_lr = scheduler.get_lr()
    return scheduler._last_lr


C10D = "torch.distributed.distributed_c10d:"
PATCHES = [
    Patch(
        "torch.utils.data.dataloader:_MultiProcessingDataLoaderIter._try_get_data",
        "extended by `WatchedWorkers`",
        "a killed data worker is noticed after dist_timeout (ten minutes) instead of five seconds",
        "a DataLoader that checks for dead workers while it waits with a timeout",
        ("96f8044a3422", "a903b1897e06"),
    ),
    Patch(
        "torch.utils.data.dataloader:DataLoader._get_iterator",
        "extended: workers are `WatchedWorkers`",
        "as for _try_get_data",
        "as for _try_get_data",
        ("bb835a9b3755", "32007420e015"),
    ),
    Patch(
        "torch.nn.modules.module:Module._apply",
        "replaced in the evaluation's metrics: only the sums that they share are moved",
        "torchmetrics copies an element from the device for each metric and waits for it",
        "a torchmetrics.Metric that can keep its state elsewhere",
        ("a5683790d11d", "e50d01ca9c5c"),
    ),
    Patch(
        "torch.utils.data._utils:MP_STATUS_CHECK_INTERVAL",
        "read: five seconds",
        "as for _try_get_data",
        "as for _try_get_data",
    ),
    Patch(
        C10D + "_set_pg_timeout",
        "called for every process group",
        "groups created by libraries wait half an hour for a rank that has died",
        "a public function that sets the timeout of a group",
        ("fbf2989e6617", "9562741d2772"),
    ),
    Patch(
        C10D + "_world",
        "read: all process groups",
        "as for _set_pg_timeout",
        "a public list of process groups",
    ),
    Patch(
        C10D + "_rank_not_in_group",
        "called for every process group",
        "as for _set_pg_timeout",
        "a public list of process groups",
        ("2423032a2275", "3cfdc31aefe4"),
    ),
    Patch(
        "torch.distributed:ProcessGroup._get_backend",
        "called for every NCCL group, for its error",
        "PyTorch aborts the process with SIGABRT, without an exit status or a message of the run",
        "a public way to ask a process group for its error",
    ),
    Patch(
        "torch.cpu:_is_avx512_bf16_supported",
        "called",
        "a run in bf16 on a CPU without instructions for it takes seven times as long, without a warning",
        "a public function that checks for these instructions",
        ("414260b63c76", "28fa7aa70329"),
    ),
    Patch(
        "torch.cpu:_is_amx_tile_supported",
        "called",
        "as for _is_avx512_bf16_supported",
        "a public function that checks for these instructions",
        ("116c255fa77e", "cd8eeae518a7"),
    ),
    Patch(
        "torch.amp.grad_scaler:GradScaler.step",
        "reads _step_supports_amp_scaling of the optimizer, which is set to false under ZeRO-0",
        "gradients would be clipped before they are unscaled",
        "a DeepSpeed that reports the norm of the gradients at stage 0 too",
        ("2b6ba725b22f", "eb10566a0646"),
    ),
    Patch(
        "torch.optim.lr_scheduler:LRScheduler.get_last_lr",
        "_last_lr is set when resume_despite changes the learning rate",
        "the log would show the old learning rate for one batch",
        "a public way to set a scheduler to a given step",
        ("4bb84b610365", "904212d93868"),
    ),
    Patch(
        "torch:_foreach_mul_",
        "called, with other _foreach functions, by LAMB and by the clipping of FSDP",
        "one kernel per tensor instead of one for all: thousands of launches per step",
        "public names for them",
    ),
]
FSDP_PATCHES = [
    Patch(
        "torch.distributed.fsdp._fully_shard._fsdp_param_group:FSDPParamGroup._record_post_forward",
        "its records are cleared after the forward pass of a sharded reference",
        "memory grows with every batch: the reference has no backward pass, which would clear them",
        "a way to tell FSDP2 that a module is frozen",
        ("1bc9529c2340",),
    ),
]
