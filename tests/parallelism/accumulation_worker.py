"""Run in child processes: two batches of four microbatches in bf16 under each ZeRO stage of DeepSpeed, on a CPU."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from ugt_composer.parallelism.deepspeed import DeepSpeedStrategy
from ugt_composer.parallelism.deepspeed_config import engine_config

RANKS = 2
CASES = ("1-none", "1-cpu", "2-none", "3-none")  # zero_stage, offload_optimizer
SCALES = (256.0, 1.0, 1.0, 1.0)  # of the microbatches' gradients: in bf16 256 + 1 is 256


class Toy(nn.Module):
    """Two parameter groups; the gradient of the bias is the scale of the microbatch."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4, bias=False)
        self.outer = nn.Linear(4, 5)

    def forward(self, scale):
        x = torch.ones(2, 3, dtype=self.inner.weight.dtype)
        return self.outer(self.inner(x)).sum(-1).mean() * scale


def build(stage: int, offload: str) -> DeepSpeedStrategy:
    torch.manual_seed(0)
    settings = engine_config(stage, offload, "none", "amp_bf16", 1e9, 2, dist.get_world_size(), 1000, {})
    return DeepSpeedStrategy(Toy(), make_optimizer, settings, torch.device("cpu"))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    groups = [{"params": list(part.parameters())} for part in model.children()]
    return torch.optim.AdamW(groups, lr=1e-3, fused=True)


def train(strategy: DeepSpeedStrategy) -> None:
    for scale in SCALES:
        strategy.scaler.scale(strategy.module(scale)).backward()
    strategy.optimizer.step()


def content(strategy: DeepSpeedStrategy) -> dict[str, torch.Tensor]:
    """Weights and moments of all parameters, gathered."""
    found = {}
    for name, parameter in strategy.named_parameters():
        found[name] = strategy.read_weight(parameter).clone()
        found |= {f"{name} {key}": value.clone() for key, value in strategy.read_moments(parameter).items()}
    return found


def write(strategy: DeepSpeedStrategy, wanted: dict[str, torch.Tensor]) -> None:
    for name, parameter in strategy.named_parameters():
        strategy.write_weight(parameter, wanted[name])
        keys = ("step", "exp_avg", "exp_avg_sq")
        strategy.write_moments(parameter, {key: wanted[f"{name} {key}"] for key in keys})


def try_case(case: str, folder: Path) -> dict[str, object]:
    zero_stage, offload = case.split("-")
    first = build(int(zero_stage), offload)
    train(first)
    once, norm = content(first), float(first.gradient_norm())
    first.save_sharded(folder)
    train(first)
    # The same step from the gathered state, and from the sharded checkpoint.
    second = build(int(zero_stage), offload)
    write(second, once)
    written = content(second)
    train(second)
    third = build(int(zero_stage), offload)
    third.load_sharded(folder)
    train(third)
    found = {"once": once, "twice": content(first), "written": written, "resumed": content(second)}
    return {"norm": norm, **found, "sharded": content(third)}


def run_rank(rank: int, out: str) -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    results = {case: try_case(case, Path(out) / case) for case in CASES}
    torch.save(results, f"{out}/{rank}.pt")
