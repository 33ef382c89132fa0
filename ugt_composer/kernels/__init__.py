"""Fused kernels in Triton for NVIDIA GPUs. Each has a form in `model/` in PyTorch's operations, for other devices.

Kernel modules import Triton, so they are imported where they are used: a machine without a GPU does not need it.
"""

import importlib.util
import logging
import os

import torch
from torch import Tensor

SWITCH = "UGT_KERNELS"  # environment variable; 0: every layer is computed by PyTorch's own operations
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD = 128  # widest head whose blocks fit into a multiprocessor's registers and shared memory
MAX_WIDTH = 4096  # of a row of a norm
MAX_TYPES = 8  # token types of a norm
MAX_GROUPS = 4096  # of a grouped product, each of whose programs reads where all groups end
_WANTED = os.environ.get(SWITCH, "1")
_IS_ON = _WANTED != "0" and torch.version.hip is None
_ARE_ENABLED = _IS_ON and importlib.util.find_spec("triton") is not None

if _WANTED not in ("0", "1"):
    logging.getLogger(__name__).warning("%s=%s is neither 0 nor 1; the Triton kernels stay on", SWITCH, _WANTED)


def are_usable(x: Tensor) -> bool:
    """Whether the kernels run for a tensor: on an NVIDIA GPU of compute capability 8.0 or above, unless switched off.
    Not in an exported program, which has to run without this package."""
    if not x.is_cuda or not _ARE_ENABLED or x.dtype not in DTYPES:
        return False
    return not is_exporting() and _gpu_is_new_enough(x.device.index)


def attention_fits(d_model: int, n_heads: int) -> bool:
    """Whether there are kernels of pointwise attention, with its norm, for these sizes."""
    return d_model <= MAX_WIDTH and d_model // n_heads <= MAX_HEAD


def is_exporting() -> bool:
    """Whether a program is being exported that has to run without this package, and so without its operators."""
    # Under `compile`, Dynamo also takes is_exporting() as true (pytorch/pytorch#176347). Our exports do not use Dynamo.
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def are_expected() -> bool:
    """Whether a run uses the kernels: if this machine has GPUs, whether they support them; if it has none (a dry run
    for another machine), whether they are switched on."""
    return _IS_ON and (not torch.cuda.is_available() or (_ARE_ENABLED and _gpu_is_new_enough(None)))


@torch.compiler.assume_constant_result
def _gpu_is_new_enough(index: int | None) -> bool:
    return torch.cuda.get_device_capability(index) >= (8, 0)
