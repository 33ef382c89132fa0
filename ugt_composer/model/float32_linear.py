"""A linear map whose result is not rounded to half precision."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Float32Linear(nn.Linear):
    """nn.Linear in float32, whatever autocast and the dtype of the weights say; TF32 where that is allowed.

    For vectors that are compared with each other: what they have in common, such as the bias, may be far larger than
    what tells them apart, and rounding them to half precision would lose the difference.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D_in) of any dtype → (..., D_out) float32."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())
