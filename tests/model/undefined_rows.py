"""What grouped products leave undefined on a GPU, on any device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ugt_composer.model.grouped_product import IS_AVAILABLE

needs_grouped_mm = pytest.mark.skipif(not IS_AVAILABLE, reason="this PyTorch has no tested grouped_mm")


class UndefinedRows(TorchDispatchMode):
    """Fills the rows after the last group with NaN, in results and in gradients, and counts the calls. Fresh memory
    often is zero, which hides a missing mask."""

    def __init__(self):
        super().__init__()
        self.forward = self.backward = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name == "ugt::grouped_linear":
            self.forward += 1
            out[args[-1][-1] :] = torch.nan
        elif func._schema.name == "ugt::grouped_linear_gradients":
            self.backward += 1
            out[0][args[-1][-1] :] = torch.nan
        return out
