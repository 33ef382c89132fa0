"""A linear layer that computes in float32 under autocast."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Float32Linear(nn.Linear):
    """nn.Linear in float32 regardless of autocast and of the dtype of the weights; in TF32 if that is allowed.

    For vectors that are compared with each other: their common part, such as the bias, may be far larger than their
    differences, which rounding to half precision would then lose.
    """

    def forward(self, x: Tensor, with_bias: bool = True) -> Tensor:
        """x (..., D_in) of any dtype → (..., D_out) float32."""
        bias = self.bias.float() if with_bias and self.bias is not None else None
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), bias)
