"""DDP: a whole model on each rank, gradients averaged after the last microbatch. Composer wraps the model itself."""

import torch
from torch import Tensor, nn

from ugt_composer.parallelism.strategy import MakeOptimizer, Moments, Strategy, placed


class DdpStrategy(Strategy):
    def __init__(self, model: nn.Module, make_optimizer: MakeOptimizer, device: torch.device):
        self.model = self.module = model.to(device)
        self.optimizer = make_optimizer(model)
        self.device = device
        self._norm = torch.zeros(())

    def clip_gradients(self, max_norm: float) -> None:
        self._norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)

    def gradient_norm(self) -> Tensor:
        return self._norm

    def read_weight(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach()

    def write_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        parameter.detach().copy_(value)

    def read_moments(self, parameter: nn.Parameter) -> Moments:
        return dict(self.optimizer.state.get(parameter, {}))

    def write_moments(self, parameter: nn.Parameter, moments: Moments) -> None:
        self.optimizer.state[parameter] = placed(moments, parameter.device)
