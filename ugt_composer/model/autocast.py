"""What autocast does to products, for code that autocast does not reach into."""

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which x enters a matrix product here: autocast's where it is on, else x's own. As for PyTorch's own
    products, float64 stays float64."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
