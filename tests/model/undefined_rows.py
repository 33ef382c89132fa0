"""What grouped products leave undefined on a GPU, on any device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ugt_composer.model.grouped_product import IS_AVAILABLE

needs_grouped_mm = pytest.mark.skipif(not IS_AVAILABLE, reason="this PyTorch has no tested grouped_mm")


class UndefinedRows(TorchDispatchMode):
    """Fills the rows of a grouped product after the last group with NaN, in the backward pass too, and counts the
    products. Fresh memory often is zero, which hides a missing mask."""

    def __init__(self):
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name == "aten::_grouped_mm":
            self.products += 1
            if out.dim() == 2:
                out[kwargs["offs"][-1] if "offs" in kwargs else args[2][-1] :] = torch.nan
        return out
