"""Mixed precision on any machine: Composer's own context does nothing on a CPU."""

from contextlib import AbstractContextManager

import torch


def precision_context(precision: str) -> AbstractContextManager:
    """Autocast for a resolved precision: amp_bf16, amp_fp16 (on a GPU only) or fp32."""
    if not torch.cuda.is_available():
        return cpu_autocast(precision == "amp_bf16")
    from composer.core import get_precision_context  # takes seconds, which a dry run does not have

    return get_precision_context(precision)


def cpu_autocast(enabled: bool) -> AbstractContextManager:
    """bfloat16 for products on a CPU."""
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 products, without which they take longer than float32 ones."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def gpu_multiplies_bf16() -> bool:
    """Whether this GPU has instructions for bfloat16 products (NVIDIA from compute capability 8.0 on); older ones
    emulate them, slower than float32."""
    return torch.cuda.is_bf16_supported(including_emulation=False)
