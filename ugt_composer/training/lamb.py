"""LAMB: AdamW whose update of each tensor is scaled by the ratio of the norms of weight and update.

You et al. (2020), Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, algorithm 2. As in the code
of its third version, there is no bias correction of the moments: the ratio of norms mostly cancels it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Bound of a weight's norm in the ratio, the paper's φ(z) = min(z, γ): a large table takes no larger steps.
LARGEST_NORM = 10.0


class Lamb(torch.optim.Optimizer):
    """
    Updates lists of tensors at once and reads nothing back from the device. The state of a parameter is on its device:
    `step` () in float32, and `exp_avg` and `exp_avg_sq` of the parameter's shape and dtype.

    Args:
        params: dense parameters or groups of them. No shards: the norms are those of whole tensors.
        lr: step size, before the ratio of norms.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: added to the update before the ratio is taken.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._state(parameter) for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        steps, means, squares = ([state[key] for state in states] for key in ("step", "exp_avg", "exp_avg_sq"))
        beta1, beta2 = group["betas"]
        torch._foreach_add_(steps, 1.0)
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["eps"])
        updates = list(torch._foreach_div(means, roots))
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        torch._foreach_mul_(updates, _ratios(parameters, updates))  # type: ignore[arg-type]  # tensors are taken too
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state


def _ratios(parameters: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    """For each parameter () ‖w‖ / ‖u‖, with ‖w‖ bounded by LARGEST_NORM; 1 if either norm is 0, as for a new bias."""
    weights = torch.stack(torch._foreach_norm(parameters)).clamp(max=LARGEST_NORM)
    sizes = torch.stack(torch._foreach_norm(updates))
    return list(torch.where((weights > 0) & (sizes > 0), weights / sizes, 1.0).unbind())
