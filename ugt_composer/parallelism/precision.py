"""Mixed precision on GPUs and CPUs. Composer's own context does nothing on a CPU."""

from contextlib import AbstractContextManager

import torch

from ugt_composer.config.schema import Config
from ugt_composer.errors import UserError
from ugt_composer.torch_patches import cpu_multiplies_bf16


def precision_context(precision: str) -> AbstractContextManager:
    """Autocast for a resolved precision: amp_bf16, amp_fp16 (on a GPU only) or fp32."""
    if not torch.cuda.is_available():
        return cpu_autocast(precision == "amp_bf16")
    from composer.core import get_precision_context  # takes seconds, and a dry run does not need it

    return get_precision_context(precision)


def cpu_autocast(enabled: bool) -> AbstractContextManager:
    """Autocast of products to bfloat16 on a CPU."""
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def gpu_multiplies_bf16() -> bool:
    """Whether this GPU has instructions for bfloat16 products (NVIDIA from compute capability 8.0 on); older ones
    emulate them, slower than float32."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def resolve_precision(precision: str) -> str:
    """Replaces "auto": amp_bf16 on a GPU with bf16 instructions, else fp32. UserError for amp_fp16 on a CPU."""
    has_gpu = torch.cuda.is_available()
    if precision == "auto":
        # Not fp16 on an older GPU: because of its narrow range, users have to ask for it.
        return "amp_bf16" if has_gpu and gpu_multiplies_bf16() else "fp32"
    if not has_gpu and precision == "amp_fp16":
        raise UserError(
            "precision is amp_fp16, but this machine has no GPU; set precision=fp32, or amp_bf16, which is faster on "
            "CPUs with instructions for it (avx512_bf16, amx_bf16)"
        )
    return precision


def about_precision(config: Config) -> str | None:
    """A warning if half precision is slow on this machine, or faster than the precision that "auto" chose."""
    precision = resolve_precision(config.precision)
    if torch.cuda.is_available():
        if gpu_multiplies_bf16():
            return None
        gpu = torch.cuda.get_device_name()
        if config.precision == "auto":
            return f"precision is auto, which is fp32 on {gpu}: it has no bf16 products; precision=amp_fp16 is faster"
        if precision == "amp_bf16":
            return f"precision is amp_bf16, which {gpu} only emulates: precision=amp_fp16 or fp32 is faster"
        return None
    if precision == "fp32" or cpu_multiplies_bf16():
        return None
    return (
        f"precision is {precision}, for which this CPU has no instructions (avx512_bf16, amx_bf16): it takes several "
        "times as long as precision=fp32"
    )
