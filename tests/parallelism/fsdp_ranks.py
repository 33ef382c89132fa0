"""Run by each gloo rank of test_fsdp.py: a small model under FSDP2 in all tested configurations."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tests.conftest import TINY, make_batch
from tests.live_tensors import live_storages
from ugt_composer.errors import UserError
from ugt_composer.model.build import build_model
from ugt_composer.model.moe import balance_loss
from ugt_composer.model.reference import Reference
from ugt_composer.parallelism.fsdp import FsdpStrategy

SMALL = replace(TINY, n_encoder_layers=1, n_decoder_layers=1)
MICROBATCHES, BATCHES, MAX_NORM, REJECTED = 2, 2, 0.1, 2
UNITS = SMALL.n_encoder_layers + SMALL.n_decoder_layers + 1  # the root
HALF = torch.bfloat16


class Toy(nn.Module):
    """A loss of a UGT's outputs; the user vector, and so `user_proj`, is used in the first microbatch only."""

    def __init__(self, seed: int):
        super().__init__()
        self.model = build_model(SMALL, seed)
        self.model.item_proj.requires_grad_(False)
        self.input_dtype: torch.dtype | None = None

    def forward(self, batch: dict[str, Tensor], is_first: bool = True) -> Tensor:
        out = self.model(batch)
        self.input_dtype = batch["reference_logps"].dtype
        loss = out["label_logps"].square().mean()
        loss = loss + balance_loss(out["router_counts"], out["router_prob_sums"])
        return loss + out["user_repr"].float().square().mean() if is_first else loss


class Scorer(nn.Module):
    """A frozen model that scores items in the caller's autograd mode."""

    def __init__(self, seed: int):
        super().__init__()
        self.model = build_model(SMALL, seed).requires_grad_(False)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model.item_logps(self.model.start(batch), item_ids(batch))


def item_ids(batch: dict[str, Tensor]) -> Tensor:
    return torch.cat((batch["labels"][:, :1].clamp(min=0), batch["rejected_ids"]), dim=1)


def batch_of(rank: int, step: int, micro: int) -> dict[str, Any]:
    batch: dict[str, Any] = dict(make_batch(rejected=REJECTED, seed=1000 * rank + 10 * step + micro))
    return batch | {"reference_logps": torch.full((4, 1 + REJECTED), -1.001)}  # no bfloat16


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    # A large eps: otherwise Adam would turn gradients that are only rounding errors into full steps.
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, eps=1e-2)


def make_strategy(seed: int = 0, **changes: Any) -> FsdpStrategy:
    toy = Toy(seed)
    arguments: dict[str, Any] = {
        "reshard_after_forward": True,
        "param_dtype": None,
        "reduce_dtype": torch.float32,
        "cpu_offload": False,
        "reduce_every_microbatch": False,
    }
    layers = [*toy.model.encoder.layers, *toy.model.decoder.layers]
    return FsdpStrategy(toy, make_optimizer, layers, torch.device("cpu"), **arguments | changes)


def train_batch(strategy: FsdpStrategy, step: int) -> None:
    """Trains one batch up to its clipped gradients, which stay in the parameters."""
    strategy.optimizer.zero_grad()
    for micro in range(MICROBATCHES):
        strategy.before_microbatch(is_last=micro == MICROBATCHES - 1)
        loss = strategy.module(batch_of(dist.get_rank(), step, micro), micro == 0)
        (loss / MICROBATCHES).backward()
    strategy.clip_gradients(MAX_NORM)


def train_alone(ranks: int) -> dict[str, Any]:
    """Trains the batches of all ranks in one process, without FSDP."""
    toy = Toy(0)
    optimizer = make_optimizer(toy)
    norms = []
    for step in range(BATCHES):
        optimizer.zero_grad()
        for micro in range(MICROBATCHES):
            for rank in range(ranks):
                (toy(batch_of(rank, step, micro), micro == 0) / MICROBATCHES / ranks).backward()
        norms.append(nn.utils.clip_grad_norm_(toy.parameters(), MAX_NORM))
        gradients = {name: p.grad.clone() for name, p in toy.named_parameters() if p.grad is not None}
        optimizer.step()
    state = {name: optimizer.state.get(p, {}) for name, p in toy.named_parameters()}
    weights = {name: p.detach() for name, p in toy.named_parameters()}
    return {"norms": norms, "gradients": gradients, "weights": weights, "moments": state}


def train(**changes: Any) -> tuple[FsdpStrategy, dict[str, Any]]:
    strategy = make_strategy(**changes)
    norms = []
    with counted("all_gather_into_tensor") as gathers, counted("reduce_scatter_tensor") as reductions:
        for step in range(BATCHES):
            train_batch(strategy, step)
            norms.append(strategy.gradient_norm())
            gradients = whole_gradients(strategy)
            strategy.optimizer.step()
    counts = {"gathers": len(gathers), "reductions": len(reductions)}
    return strategy, {"norms": norms, "gradients": gradients, **counts, **tensors_of(strategy)}


def whole_gradients(strategy: FsdpStrategy) -> dict[str, Tensor]:
    named = list(strategy.named_parameters())
    return {name: p.grad.full_tensor() for name, p in named if isinstance(p.grad, DTensor)}


def tensors_of(strategy: FsdpStrategy) -> dict[str, Any]:
    named = list(strategy.named_parameters())
    return {
        "weights": {name: strategy.read_weight(p).clone() for name, p in named},
        "moments": {name: {k: v.clone() for k, v in strategy.read_moments(p).items()} for name, p in named},
    }


@contextmanager
def counted(collective: str) -> Iterator[list[int]]:
    calls: list[int] = []
    original = getattr(dist, collective)

    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    with patch.object(dist, collective, count):
        yield calls


def scatter(averages: bool) -> Callable[..., Any]:
    """gloo's reduce-scatter; computes the mean, or the sum instead, where the mean is requested."""
    original = dist.reduce_scatter_tensor

    def reduce(output: Tensor, input: Tensor, op: Any, group: Any, **_: Any) -> None:
        original(output, input, op=dist.ReduceOp.SUM, group=group)
        if averages and op == dist.ReduceOp.AVG:
            output.div_(dist.get_world_size())

    return reduce


def backends() -> dict[str, Any]:
    found = {}
    for averages in (True, False):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            with patch.object(dist, "reduce_scatter_tensor", scatter(averages)):
                strategy = make_strategy(reduce_dtype=dtype)
                train_batch(strategy, 0)
                found[averages, dtype] = (strategy._divisor, strategy.gradient_norm())
    return found


def copied(strategy: FsdpStrategy, tensors: dict[str, Any]) -> dict[str, Any]:
    """The state of another strategy that has loaded the tensors, and its next gradients, with those of the first."""
    other = make_strategy(seed=9)
    for name, parameter in other.named_parameters():
        other.write_weight(parameter, tensors["weights"][name])
        if tensors["moments"][name]:
            other.write_moments(parameter, tensors["moments"][name])
    return {"tensors": tensors_of(other), "next": [next_step(strategy), next_step(other)]}


def next_step(strategy: FsdpStrategy) -> dict[str, Any]:
    train_batch(strategy, 7)
    strategy.optimizer.step()
    return tensors_of(strategy)


def sharded(folder: Path) -> dict[str, Any]:
    strategy, _ = train()
    strategy.save_sharded(folder / "shards")
    other = make_strategy(seed=9)
    other.load_sharded(folder / "shards")
    tensors = [tensors_of(strategy), tensors_of(other)]
    # As written by versions that sharded whole experts.
    name, value = next((name, p) for name, p in Toy(0).named_parameters() if p.dim() == 3)
    whole = distribute_tensor(value.detach(), strategy._mesh, [Shard(0)])
    dcp.save({"model": {name: whole}}, checkpoint_id=folder / "older")
    try:
        other.load_sharded(folder / "older")
    except UserError as error:
        return {"tensors": tensors, "error": str(error), "name": name}
    return {"tensors": tensors, "error": "", "name": name}


def half() -> dict[str, Any]:
    """Under autocast: dtypes of inputs and gradients, and the scores of policy and references for the same items."""
    batch = batch_of(dist.get_rank(), 0, 0)
    with torch.autocast("cpu", HALF):
        strategy = make_strategy(param_dtype=HALF)
        train_batch(strategy, 0)
        gradients = {p.grad.dtype for p in strategy.model.parameters() if p.grad is not None}
        logps: list[Tensor] = []
        network = strategy.model.model
        handle = strategy.model.register_forward_hook(
            lambda *_: logps.append(network.item_logps(network.start(batch), item_ids(batch)).detach())
        )
        strategy.module(batch)
        handle.remove()
        placed = strategy.place_reference(Reference(build_model(SMALL, 0)))
        together = strategy.shard_reference(Reference(build_model(SMALL, 0)))
        return {
            "input": strategy.model.input_dtype,
            "gradients": gradients,
            "policy": logps[0],
            "placed": placed(batch)["logps"],
            "sharded": together(batch)["logps"],
        }


def accumulated() -> dict[torch.dtype, int]:
    """{dtype: bytes} of the gradients of a rank between two microbatches."""
    strategy = make_strategy(param_dtype=HALF)
    strategy.before_microbatch(is_last=False)
    strategy.module(batch_of(dist.get_rank(), 0, 0)).backward()
    groups = [m._get_fsdp_state()._fsdp_param_group for m in strategy.model.modules() if isinstance(m, FSDPModule)]
    found: dict[torch.dtype, int] = {}
    for gradient in (p.unsharded_accumulated_grad for group in groups for p in group.fsdp_params):
        if gradient is not None:
            found[gradient.dtype] = found.get(gradient.dtype, 0) + gradient.nbytes
    return found


def live_bytes() -> int:
    """Bytes of all tensors created since `gc.freeze`. Measured several times: gloo's thread releases its tensors a
    moment after a gather is done."""
    found = []
    for pause in (0.0, 0.02, 0.2):
        time.sleep(pause)
        gc.collect()
        found.append(sum(live_storages().values()))
    return min(found)


def reference_bytes(with_grad: bool) -> dict[str, Any]:
    """Bytes of a sharded reference on a rank, of its largest layer, and of all of it."""
    strategy, batch = make_strategy(), batch_of(0, 0, 0)
    expected = Scorer(0)(batch)
    gc.freeze()
    scorer = Scorer(0)
    layers = [*scorer.model.encoder.layers, *scorer.model.decoder.layers]
    sizes = [sum(p.nbytes for p in layer.parameters()) for layer in layers]
    held: dict[str, Any] = {"whole": live_bytes(), "layer": max(sizes)}
    held["root"] = held["whole"] - sum(sizes)
    reference = strategy.shard_reference(scorer)
    held["shards"] = live_bytes()
    during: list[int] = []
    for layer in layers:
        layer.register_forward_hook(lambda *_: during.append(live_bytes()))
    with torch.set_grad_enabled(with_grad):
        held["right"] = [torch.allclose(reference(batch), expected, atol=1e-5) for _ in range(3)]
    held |= {"during": max(during), "after": live_bytes()}
    held["order"] = len(reference._get_fsdp_state()._comm_ctx.post_forward_order)
    gc.unfreeze()
    return held


def run_rank(rank: int, ranks: int, folder: str) -> None:
    strategy, once = train()
    results: dict[str, Any] = {
        "once": once,
        "copied": copied(strategy, once),
        "every": train(reduce_every_microbatch=True)[1],
        "kept": train(reshard_after_forward=False)[1],
        "sharded": sharded(Path(folder)),
    }
    if ranks == 2:
        results |= {
            "offloaded": train(cpu_offload=True)[1],
            "backends": backends(),
            "half": half(),
            "accumulated": accumulated(),
            "reference": {with_grad: reference_bytes(with_grad) for with_grad in (True, False)},
        }
    torch.save(results, f"{folder}/{rank}.pt")
