"""The memory that autograd keeps for the backward pass."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ugt_composer.model import dropout


def saved_bytes(layer: nn.Module, *inputs: Any) -> int:
    """Bytes of the storages that autograd keeps for layer(*inputs), and of its result, without inputs and weights."""
    given = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    known = {t.untyped_storage().data_ptr() for t in (*given, *layer.parameters())}
    storages: dict[int, int] = {}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # so that no address is used twice
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = layer(*inputs)
    result = out[0] if isinstance(out, tuple) else out
    pack(result)
    return sum(size for address, size in storages.items() if address not in known)


@pytest.fixture
def dropout_as_on_a_gpu(monkeypatch):
    """Makes dropout keep one byte per element, as PyTorch's does on a GPU."""

    def forward(self, x):
        return torch.ops.aten.native_dropout(x, self.p, True)[0] if self.p else x

    monkeypatch.setattr(dropout.Dropout, "forward", forward)
