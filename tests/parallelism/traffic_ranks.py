"""Run by each gloo rank of test_traffic.py: a batch of several microbatches under a strategy, and what it casts and
sends."""

import os
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.conftest import TINY, make_batch
from ugt_composer.model.build import build_model
from ugt_composer.parallelism.ddp import DdpStrategy
from ugt_composer.parallelism.deepspeed import DeepSpeedStrategy
from ugt_composer.parallelism.deepspeed_config import engine_config
from ugt_composer.parallelism.fsdp import FsdpStrategy
from ugt_composer.parallelism.strategy import Strategy

RANKS, MICROBATCHES = 2, 3
CASES = (
    "ddp",
    "ddp fp16",
    "ddp recomputing",
    "fsdp",
    "fsdp fp16",
    "fsdp recomputing",
    "fsdp keeping",
    "fsdp every",
    "zero-0",
    "zero-1",
    "zero-2",
    "zero-3",
)
SMALL = 512  # numbers; vectors of a norm or a bias have fewer


class Traffic(TorchDispatchMode):
    """Counts numbers: of float32 tensors with the size of a weight, or of a rank's part of one, that are cast to half
    precision, and of gradients that are reduced over the ranks."""

    def __init__(self, sizes: set[int]):
        super().__init__()
        self._sizes = sizes
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        pairs: list[tuple[Tensor, Tensor]] = []
        if name == "aten::_to_copy":
            pairs = [(args[0], out)]
        elif name == "aten::copy_":
            pairs = [(args[1], args[0])]
        elif name == "aten::_foreach_copy_":
            pairs = list(zip(args[1], args[0], strict=True))
        for source, result in pairs:
            is_cast = source.dtype == torch.float32 and result.dtype in (torch.bfloat16, torch.float16)
            if is_cast and source.numel() in self._sizes:
                self.found["cast"] += source.numel()
        if name.startswith("c10d::") and "reduce" in name:
            tensors = tree_leaves(args[1] if "scatter" in name else args[0])
            self.found["reduced"] += sum(tensor.numel() for tensor in tensors if isinstance(tensor, Tensor))
        return out


def make_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)


def build(case: str, model: Any) -> Strategy:
    name, _, variant = case.partition(" ")
    model.encoder.activation_checkpointing = model.decoder.activation_checkpointing = variant == "recomputing"
    device = torch.device("cpu")
    if name == "ddp":
        strategy = DdpStrategy(model, make_optimizer, device)
        strategy.module = DistributedDataParallel(model)
        return strategy
    if name == "fsdp":
        layers = [*model.encoder.layers, *model.decoder.layers]
        half = torch.float16 if variant == "fp16" else torch.bfloat16
        choices = (variant != "keeping", half, torch.float32, False, variant == "every")
        return FsdpStrategy(model, make_optimizer, layers, device, *choices)
    number = sum(parameter.numel() for parameter in model.parameters())
    settings = engine_config(int(name[-1]), "none", "none", "amp_bf16", 1e9, 8, RANKS, number, {})
    return DeepSpeedStrategy(model, make_optimizer, settings, device)


def measure(case: str, rank: int) -> dict[str, Any]:
    """`cast`: numbers that each microbatch casts, in units of the model's large weights. `reduced`: numbers of a batch
    that are reduced, in units of the model."""
    torch.manual_seed(0)
    model = build_model(replace(TINY, expert_capacity_factor=1.25), 0).train()
    counts = [parameter.numel() for parameter in model.parameters()]
    large = [count for count in counts if count >= SMALL]
    strategy = build(case, model)
    casts_itself = case.startswith("zero")
    half = torch.float16 if "fp16" in case else torch.bfloat16
    cast: list[float] = []
    reduced = 0
    traffic = Traffic({*large, *(count // RANKS for count in large)})
    for step in range(2):  # the second one is measured: DDP makes its buckets in the first
        cast, reduced = [], 0
        for number in range(MICROBATCHES):
            is_last = number == MICROBATCHES - 1
            strategy.before_microbatch(is_last)
            waits = isinstance(strategy.module, DistributedDataParallel) and not is_last
            with traffic, strategy.module.no_sync() if waits else nullcontext():
                with torch.autocast("cpu", half, enabled=not casts_itself):
                    outputs = strategy.module(make_batch(seed=10 * step + number))
                values = [value for value in outputs.values() if torch.is_tensor(value) and value.requires_grad]
                loss = torch.stack([value.float().square().mean() for value in values]).sum()
                (loss if strategy.scaler is None else strategy.scaler.scale(loss)).backward()
            cast.append(traffic.found["cast"] / sum(large))
            reduced += traffic.found["reduced"]
            traffic.found.clear()
        with traffic:
            strategy.clip_gradients(1.0)
            strategy.optimizer.step()
        strategy.optimizer.zero_grad(set_to_none=True)
        reduced += traffic.found["reduced"]
        traffic.found.clear()
    return {"cast": cast, "reduced": reduced / sum(counts)}


def run_rank(rank: int, out: str) -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    torch.save({case: measure(case, rank) for case in CASES}, f"{out}/{rank}.pt")
