"""Parameter groups, optimizers and learning-rate schedules."""

from types import SimpleNamespace
from typing import Any, Literal

import torch
from composer import Time, Timestamp
from composer.optim import (
    ComposerScheduler,
    ConstantWithWarmupScheduler,
    CosineAnnealingWithWarmupScheduler,
    LinearWithWarmupScheduler,
    PolynomialWithWarmupScheduler,
)
from torch import nn

from ugt_composer.training.lamb import Lamb

POLYNOMIAL_POWER = 2.0


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Trainable parameters in two groups: with weight decay, and without (biases, and scales and shifts of norms).

    The PAD rows of embeddings are zero and get no gradient, so that decay leaves them at zero.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_bias, is_norm = name.endswith("bias"), "norm." in name
        (undecayed if is_bias or is_norm else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]


def create_optimizer(
    model: nn.Module,
    name: Literal["adamw", "lamb"],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019) or LAMB (You et al., 2020) over the model's trainable parameters."""
    groups = parameter_groups(model, weight_decay)
    if name == "adamw":
        # One kernel for all tensors reads and writes each number once, on GPUs and CPUs and for shards too. It looks up
        # the parameters' device in each step, so that a strategy may move them before the first one.
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
    if name == "lamb":
        return Lamb(groups, lr=lr, betas=betas, eps=eps)
    raise ValueError(f"optimizer {name!r} is unknown; expected adamw or lamb")


def create_scheduler(
    name: Literal["linear", "cosine", "polynomial", "constant"], t_warmup: str, t_max: str, min_lr_ratio: float
) -> ComposerScheduler:
    """A Composer schedule: linear warm-up over `t_warmup`, decay to `min_lr_ratio` of the peak at `t_max`.

    Args:
        name: shape of the decay; "constant" stays at the peak, "polynomial" is quadratic.
        t_warmup: length of the warm-up, a Composer time ("500ba", "3ep").
        t_max: end of the decay, a Composer time. The run's length is given here and not taken from the trainer, so that
            training in pieces follows the same curve.
        min_lr_ratio: final learning rate, as a fraction of the peak.
    """
    if name == "constant":
        return HeldAfterEnd(ConstantWithWarmupScheduler(t_warmup=t_warmup, t_max=t_max))
    if name == "linear":
        return HeldAfterEnd(LinearWithWarmupScheduler(t_warmup=t_warmup, t_max=t_max, alpha_f=min_lr_ratio))
    if name == "cosine":
        return HeldAfterEnd(CosineAnnealingWithWarmupScheduler(t_warmup=t_warmup, t_max=t_max, alpha_f=min_lr_ratio))
    if name == "polynomial":
        return HeldAfterEnd(
            PolynomialWithWarmupScheduler(t_warmup=t_warmup, power=POLYNOMIAL_POWER, t_max=t_max, alpha_f=min_lr_ratio)
        )
    raise ValueError(f"scheduler {name!r} is unknown; expected linear, cosine, polynomial or constant")


class HeldAfterEnd(ComposerScheduler):
    """A schedule that stays at its last value after `t_max`. Composer's own raise an error if a run is longer."""

    def __init__(self, scheduler: Any):
        self.scheduler = scheduler
        self.t_max = Time.from_timestring(scheduler.t_max)

    def __call__(self, state: Any, ssr: float = 1.0) -> float:
        shortened = SimpleNamespace(
            timestamp=state.timestamp, max_duration=self.t_max, dataloader_len=state.dataloader_len
        )
        return self.scheduler(shortened, ssr)


def lr_factor(scheduler: ComposerScheduler, batch: int) -> float:
    """The learning rate as a fraction of its peak after a number of batches, of a schedule whose times are batches."""
    return scheduler(SimpleNamespace(timestamp=Timestamp(batch=batch), dataloader_len=None))  # type: ignore[arg-type]
