"""Dropout with fewer random numbers: on a CPU, drawing them takes a large part of a small model's time."""

import torch
from torch import Tensor, nn

DRAWS = 1 << 16  # equally likely values of a draw; a random 64-bit number gives four draws


class Dropout(nn.Dropout):
    """nn.Dropout. In training on a CPU, p is rounded to a multiple of 1 / DRAWS, and only a quarter as many random
    numbers are drawn; they come from PyTorch's default generator."""

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * DRAWS)
        if not self.training or x.device.type != "cpu" or not 0 < dropped < DRAWS or torch.compiler.is_compiling():
            return super().forward(x)
        numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        draws = numbers.view(torch.int16)[: x.numel()].view(x.shape)
        keep = draws >= dropped - DRAWS // 2
        return x * (keep.to(x.dtype) * (DRAWS / (DRAWS - dropped)))
