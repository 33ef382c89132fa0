"""A linear layer that computes in float32 under autocast."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Float32Linear(nn.Linear):
    """nn.Linear in float32 regardless of autocast and of the dtype of the weights; in TF32 if that is allowed.

    For vectors that are compared with each other: their common part, such as the bias, may be far larger than their
    differences, which rounding to half precision would then lose.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D_in) of any dtype → (..., D_out) float32."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())
