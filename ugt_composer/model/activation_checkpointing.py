"""Activation checkpointing: activations are recomputed in the backward pass instead of stored."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run_layer(layer: nn.Module, checkpointing: bool, *inputs: Any) -> Any:
    """layer(*inputs); with `checkpointing` only the inputs are stored for the backward pass (Chen et al., 2016)."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)
