"""Dropout that draws less: random numbers are a large part of the time that a small model takes on a CPU."""

import torch
from torch import Tensor, nn

DRAWS = 1 << 16  # a 64-bit number makes four draws of so many equally likely values


class Dropout(nn.Dropout):
    """nn.Dropout. In training on a CPU an element is dropped with probability p rounded to a multiple of 1 / DRAWS, by
    a quarter of the random numbers; they come from PyTorch's default generator."""

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * DRAWS)
        if not self.training or x.device.type != "cpu" or not 0 < dropped < DRAWS or torch.compiler.is_compiling():
            return super().forward(x)
        numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        draws = numbers.view(torch.int16)[: x.numel()].view(x.shape)
        keep = draws >= dropped - DRAWS // 2
        return x * (keep.to(x.dtype) * (DRAWS / (DRAWS - dropped)))
