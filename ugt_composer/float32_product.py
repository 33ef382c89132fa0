"""Matrix products that are float32 even where TF32 is allowed for all others.

TF32 keeps 10 of float32's 23 bits of mantissa. That is enough for a layer, but not where near ties are decided (a
router) or products are divided by a small temperature (a contrastive loss).
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

# Since PyTorch 2.9 the setting has two names, `allow_tf32` and `fp32_precision`. Writing the first sets both; reading
# it raises if the second was written last.
_TWO_NAMES = torch.__version__ >= "2.9"  # a TorchVersion, which compares by number


def allow_tf32(allowed: bool) -> None:
    """Sets whether float32 products on a GPU may be TF32, for the whole process. Composer sets this flag, too."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def tf32_is_allowed() -> bool:
    if _TWO_NAMES:
        return torch.backends.cuda.matmul.fp32_precision == "tf32"
    return torch.backends.cuda.matmul.allow_tf32


def float32_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (M, D) @ b (D, N) → (M, N) in float32, regardless of autocast, of the inputs' dtype and of the TF32 setting."""
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.float(), b.float()
        # Dynamo cannot read the setting, so a compiled model always uses the op.
        if a.device.type == "cuda" and (torch.compiler.is_dynamo_compiling() or tf32_is_allowed()):
            return _matmul_without_tf32(a, b)
        return a @ b


# A custom op, because the compiler would otherwise set the flag while it traces, not while the product runs.
@torch.library.custom_op("ugt::matmul_without_tf32", mutates_args=())
def _matmul_without_tf32(a: Tensor, b: Tensor) -> Tensor:
    before = tf32_is_allowed()
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return a @ b
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@_matmul_without_tf32.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors
    grad_a = _matmul_without_tf32(grad, b.t()) if ctx.needs_input_grad[0] else None
    grad_b = _matmul_without_tf32(a.t(), grad) if ctx.needs_input_grad[1] else None
    return grad_a, grad_b


_matmul_without_tf32.register_autograd(_gradients, setup_context=_save)


@register_flop_formula(torch.ops.ugt.matmul_without_tf32)
def _operations(a_shape: torch.Size, b_shape: torch.Size, *_: Any, **__: Any) -> int:
    """For PyTorch's FlopCounterMode."""
    return 2 * a_shape.numel() * b_shape[1]
