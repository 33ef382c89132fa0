"""`compile: true`: each layer of encoder and decoder is compiled by torch.compile.

Layers of one class share what is compiled. It is compiled up to three times: for the sizes of the first batch, for
other numbers of rows, and for other lengths, which then vary freely.
"""

import getpass
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from composer.utils import dist

from ugt_composer.model.ugt import UGT

# Variants of a layer that may be compiled. The sizes of rows, histories and targets are variable, except that PyTorch
# compiles 1 by itself; then there are training (with and without rejected items), its recomputation, evaluation, the
# reference, and their first two batches. With PyTorch's limit of 8 a layer would silently no longer be compiled.
VARIANTS = 64


def compile_layers(model: UGT, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compiles each layer when it is first called; the names of the weights do not change."""
    # A cache for each rank: ranks that compile the same code into one read each other's half-written files.
    cache = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}" / f"rank{dist.get_local_rank()}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    import torch._dynamo.config as settings

    settings.recompile_limit = max(VARIANTS, settings.recompile_limit)
    # Under DDP, PyTorch would cut a layer in pieces at the borders of DDP's buckets, so that gradients are sent while
    # others are computed. Layers are compiled one by one, so that they are anyway; and pieces of variable sizes fail.
    settings.optimize_ddp = False
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.compile(backend=backend)
