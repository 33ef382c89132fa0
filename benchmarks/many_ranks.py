"""One rank of 8, 64 and 512, simulated without the others: the memory that it takes, compared with the dry run's
estimate, and the bytes that it sends in a step, compared with `full_size.py`.

PyTorch's fake process group takes part in every collective and sends nothing. The model has its default sizes; its
tensors have shapes but no numbers (`FakeTensorMode`), except under ZeRO-3, which is faster with numbers. The memory is
that of all tensors' storages. A rank has one row of one token per microbatch, so that activations, which
`gpu.py` measures, are small next to weights, gradients and optimizer state. Precision is amp_bf16.

Each run is a process of its own, of at most 4 GB; all of them took 13 minutes on two busy cores.

    python benchmarks/many_ranks.py [--ranks 8 64 512] [--processes 2] [--small] [--only fsdp …]
"""

import argparse
import gc
import multiprocessing
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed._tools.fake_collectives  # collectives of tensors without numbers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.claims import markdown, write_section  # noqa: E402
from benchmarks.full_size import STRATEGIES as SENT  # noqa: E402
from benchmarks.random_rows import random_row  # noqa: E402
from ugt_composer.config.load import load_config  # noqa: E402
from ugt_composer.data.collate import collate  # noqa: E402
from ugt_composer.losses.normalization import batch_counts  # noqa: E402
from ugt_composer.losses.unified import UnifiedLoss  # noqa: E402
from ugt_composer.model.build import freeze_untrained  # noqa: E402
from ugt_composer.model.ugt import UGT  # noqa: E402
from ugt_composer.parallelism import fsdp  # noqa: E402
from ugt_composer.parallelism.build import build_strategy  # noqa: E402
from ugt_composer.parallelism.deepspeed import DeepSpeedStrategy  # noqa: E402
from ugt_composer.parallelism.deepspeed_patches import import_deepspeed  # noqa: E402
from ugt_composer.parallelism.strategy import Strategy  # noqa: E402
from ugt_composer.training.memory_estimate import estimate  # noqa: E402
from ugt_composer.training.optim import create_optimizer  # noqa: E402

MICROBATCHES = 2
PRECISION = "amp_bf16"
FSDP = ("parallelism.strategy=fsdp",)


TEXT = (
    f"Rank 0 of stage 2 at its default sizes, in {PRECISION} and a fake process group: one process, nothing is sent. A",
    f"step has {MICROBATCHES} microbatches of one row of one token, so that nearly all memory is the strategy's.",
    "*Kept*: all tensors between backward pass and optimizer step; *peak*: the most during the step; both against the",
    "dry run's estimate. *Sent*: counted from the collectives, with a ring's traffic, against `full_size`.",
    "With cpu_offload, memory is that of device and host together.",
    "",
    "- FSDP's peak is below the estimate where shards are large: the shards of gradients replace the accumulated ones",
    "  layer by layer, and the estimate counts both.",
    "- FSDP at 512 ranks sends more than `full_size` says: each parameter is padded to a multiple of 512 rows.",
)


class Kind(NamedTuple):
    """
    Attributes:
        overrides: of the configuration.
        temporary: items of the estimate that do not exist between backward pass and optimizer step.
        sent: its name in `full_size.py`; None: it has no figure there.
        is_fake: simulated without numbers; otherwise a step is simulated before the measured one.
    """

    overrides: tuple[str, ...]
    temporary: tuple[str, ...]
    sent: str | None = None
    is_fake: bool = True


def _zero(stage: int, *temporary: str) -> Kind:
    overrides = ("parallelism.strategy=deepspeed", f"parallelism.deepspeed.zero_stage={stage}")
    return Kind(overrides, temporary, f"deepspeed, zero_stage {stage}", stage < 3)


GATHERED = ("gathered", "whole gradients", "reduced at once")
KINDS = {
    "ddp": Kind(("parallelism.strategy=ddp",), (), "ddp"),
    "fsdp": Kind(FSDP, GATHERED, "fsdp"),
    "fsdp, reshard_after_forward false": Kind((*FSDP, "parallelism.fsdp.reshard_after_forward=false"), GATHERED),
    "fsdp, reduce_every_microbatch true": Kind((*FSDP, "parallelism.fsdp.reduce_every_microbatch=true"), GATHERED),
    "fsdp, cpu_offload true": Kind((*FSDP, "parallelism.fsdp.cpu_offload=true"), GATHERED, "fsdp"),
    "zero_stage 1": _zero(1, "buckets"),
    "zero_stage 2": _zero(2, "buckets"),
    "zero_stage 3": _zero(3, "gathered", "reduced at once"),
}


class Found(NamedTuple):
    """Bytes of a rank, each measured and as estimated.

    Attributes:
        kept: of all tensors between backward pass and optimizer step.
        peak: of all tensors at once during a step.
        sent: in a step; the estimate is None if `full_size.py` has none.
    """

    kind: str
    ranks: int
    kept: tuple[int, int]
    peak: tuple[int, int]
    sent: tuple[int, int | None]
    seconds: float


class Rank(TorchDispatchMode):
    """Counts the bytes of all storages that operations create, and those that collectives send, by rings.

    Attributes:
        live, peak: bytes now, and the most so far.
        sent: bytes, by this one of `ranks` ranks.
    """

    def __init__(self, ranks: int):
        super().__init__()
        self._ranks = ranks
        self._sizes: dict[int, int] = {}
        self.live = self.peak = 0
        self.sent = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # DTensor calls the operation with its shard
        if function is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 0.0 if args[0].is_floating_point() else 0  # a norm, or whether a gradient is infinite
        result = function(*args, **(kwargs or {}))
        if function.namespace == "c10d":
            size = max(_bytes_of(argument) for argument in args)  # the whole tensor; the other one is a shard
            copies = 2 if function.__name__.startswith("allreduce") else 1
            self.sent += copies * size * (self._ranks - 1) / self._ranks
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = 0
            weakref.finalize(storage, self._forget, key)
        self._resize(storage)

    def _resize(self, storage: torch.UntypedStorage) -> None:
        self.live += storage.nbytes() - self._sizes[storage._cdata]
        self._sizes[storage._cdata] = storage.nbytes()
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """FSDP frees gathered weights by resizing their storage, which is no operation."""
        resize = torch.UntypedStorage.resize_

        def resize_and_count(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            if storage._cdata in self._sizes:
                self._resize(storage)
            return result

        torch.UntypedStorage.resize_ = resize_and_count  # type: ignore[method-assign, assignment]
        try:
            with self:
                yield
        finally:
            torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]


class Whole(nn.Module):
    """What strategies place: a model and its loss."""

    def __init__(self, model: UGT, loss: UnifiedLoss):
        super().__init__()
        self.model, self.unified_loss = model, loss

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.unified_loss(self.model(batch), batch)["total_loss"]


def simulate(kind: str, ranks: int, is_small: bool) -> Found:
    """Rank 0 in a step whose optimizer state exists."""
    started = time.monotonic()
    torch.set_num_threads(1)
    setting = KINDS[kind]
    os.environ |= {"MASTER_ADDR": "localhost", "RANK": "0", "WORLD_SIZE": str(ranks)}
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(min(ranks, 8))}
    sizes = ("model.n_encoder_layers=1", "model.n_decoder_layers=1") if is_small else ()
    rows = (f"global_train_batch_size={MICROBATCHES * ranks}", "device_train_microbatch_size=1")
    config = load_config(
        ROOT / "yamls/stage2.yaml", overrides=[f"precision={PRECISION}", *rows, *sizes, *setting.overrides]
    )
    estimated = estimate(config, ranks, (1, 1, 0))
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    collated = collate([random_row(0, config.model.codebook_sizes, 1, 1)])
    batch = {**collated, "batch_totals": batch_counts(collated)}
    mode = FakeTensorMode(allow_non_fake_inputs=True) if setting.is_fake else nullcontext()
    fsdp.init_device_mesh = _with_numbers(fsdp.init_device_mesh)  # the mesh reads the numbers of ranks
    rank = Rank(ranks)
    with mode, rank.counting():
        model = UGT(**asdict(config.model))
        freeze_untrained(model, config.loss)
        loss = UnifiedLoss(**config.loss.arguments, repr_dim=config.model.d_model, seed=config.seed)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        strategy = build_strategy(
            config,
            Whole(model, loss),
            model,
            lambda placed: create_optimizer(placed, **asdict(config.optimizer)),
            PRECISION,
        )
        if setting.is_fake:
            _allocate_state(strategy)
        else:  # ZeRO-3 learns in the first step which weights come when
            _step(strategy, batch, rank)
        gc.collect()
        rank.peak, rank.sent = rank.live, 0.0
        kept = _step(strategy, batch, rank)
    items = estimated.items
    name = setting.sent
    expected = None if name is None else SENT[name](MICROBATCHES) * parameters * (ranks - 1) // ranks
    return Found(
        kind,
        ranks,
        (kept, sum(item.bytes for item in items if item.name not in setting.temporary)),
        (rank.peak, sum(item.bytes for item in items) + estimated.activations),
        (round(rank.sent), expected),
        time.monotonic() - started,
    )


def _step(strategy: Strategy, batch: dict[str, Tensor], rank: Rank) -> int:
    """Returns the bytes of all tensors between backward pass and optimizer step."""
    module: Any = strategy.module
    if strategy.composer_places_model:  # as Composer does; `init_sync` would compare numbers
        module = DistributedDataParallel(module, init_sync=False)
        module.register_comm_hook(None, _reduce_bucket)
    for number in range(MICROBATCHES):
        is_last = number == MICROBATCHES - 1
        strategy.before_microbatch(is_last)
        with module.no_sync() if strategy.composer_places_model and not is_last else nullcontext():
            with torch.autocast("cpu", torch.bfloat16, enabled=strategy.scaler is None):
                loss = module(batch)
            (loss if strategy.scaler is None else strategy.scaler.scale(loss)).backward()
        del loss
    gc.collect()
    kept = rank.live
    strategy.clip_gradients(1.0)
    strategy.optimizer.step()
    return kept


def _allocate_state(strategy: Strategy) -> None:
    """Allocates the optimizer's state, as a first step would."""
    if isinstance(strategy, DeepSpeedStrategy):
        strategy.allocate_moments()
        return
    for parameter in strategy.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    strategy.optimizer.step()
    strategy.optimizer.zero_grad(set_to_none=True)


def _reduce_bucket(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """What DDP does by itself, but its own all-reduce has no result in a fake process group."""
    dist.all_reduce(bucket.buffer())
    reduced: torch.futures.Future[Tensor] = torch.futures.Future()
    reduced.set_result(bucket.buffer())
    return reduced


def _with_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        with unset_fake_temporarily():
            return function(*arguments)

    return call


def _bytes_of(argument: Any) -> int:
    return sum(tensor.nbytes for tensor in tree_leaves(argument) if isinstance(tensor, Tensor))


def _prepare_deepspeed() -> None:
    """Imports it once for all runs, without its check that all ranks run the same layers: there is one rank."""
    import_deepspeed(torch.device("cpu"))
    from deepspeed.runtime.zero import partitioned_param_coordinator

    partitioned_param_coordinator.assert_ints_same_as_other_ranks = lambda *_: None


def _work(job: tuple[str, int, bool]) -> Found:
    return simulate(*job)


def _cells(found: Found) -> list[str]:
    pairs = (found.kept, found.peak, found.sent)
    return [found.kind, str(found.ranks), *(cell for pair in pairs for cell in _against(*pair))]


def _against(measured: int, expected: int | None) -> tuple[str, str]:
    """The measured bytes in GB; the expected ones, and by how much the measured ones differ."""
    if expected is None:
        return f"{measured / 1e9:.3f}", ""
    return f"{measured / 1e9:.3f}", f"{expected / 1e9:.3f} ({measured / expected - 1:+.1%})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--processes", type=int, default=2, help="runs at the same time")
    parser.add_argument("--small", action="store_true", help="one layer each of encoder and decoder; writes no results")
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="STRATEGY")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    _prepare_deepspeed()
    jobs = [(kind, ranks, arguments.small) for ranks in arguments.ranks for kind in arguments.only]
    found: list[Found] = []
    console = Console()
    # Processes are forked, so that none imports anything again.
    with multiprocessing.get_context("fork").Pool(arguments.processes, maxtasksperchild=1) as pool:
        for one in pool.imap_unordered(_work, jobs):
            found.append(one)
            console.print(f"{len(found)} of {len(jobs)}: {one.kind}, {one.ranks} ranks, {one.seconds:.0f} s")
    heads = ("strategy", "ranks", *(cell for what in ("kept", "peak", "sent") for cell in (f"{what}, GB", "estimate")))
    rows = [_cells(one) for one in sorted(found, key=lambda one: (list(KINDS).index(one.kind), one.ranks))]
    table = Table(*heads)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if not arguments.small and arguments.only == list(KINDS):
        write_section(__file__, [*TEXT, "", *markdown(heads, rows)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
