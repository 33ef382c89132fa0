"""The dtype that autocast uses for matrix products, for code that autocast does not affect."""

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype that x is cast to for a matrix product: autocast's if it is enabled, else x's. As in PyTorch's own
    products, float64 stays float64."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
