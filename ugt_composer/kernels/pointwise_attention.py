"""Pointwise attention in three Triton kernels: forward, gradients of keys and values, gradient of queries.

Y = φ(s · Q Kᵀ) V / n per row and head, with φ = SiLU or ReLU, s = 1 / √d and n the number of valid keys of the row
(HSTU, Zhai et al., 2024). A block of weights lives in registers only. Products are accumulated in float32.

N tokens of all rows together, B rows, H heads, d width of a head, D = H · d. The tokens of row b are those from
offsets[b] to offsets[b + 1]: rows may be packed without padding, or padded to equal lengths with a mask. Keys are zero
where the mask is False, and φ(0) = 0, so neither the weights nor the sums need it. Tokens after the last valid one of a
row are skipped; their outputs and gradients are zero.

The backward pass computes the weights twice, once for the gradients of keys and values and once for those of queries,
so that each gradient is summed by one program, in a fixed order: the same inputs give the same bits.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ugt_composer.float32_product import tf32_is_allowed

VARYING = ("length", "blocks")  # differ from batch to batch; specialised, they would compile up to six variants


class Blocks(NamedTuple):
    """Sizes of a kernel's blocks: tokens that a program owns, tokens that it reads at once, warps, stages."""

    own: int
    read: int
    warps: int
    stages: int


@triton.jit
def _tanh(x):
    """The GPU's own tanh, with a relative error of 2^-11: the rounding of float16, an eighth of bfloat16's."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _weights(half, SILU: tl.constexpr, FAST: tl.constexpr):
    """φ(2 · half). SiLU(x) = x σ(x) = x/2 + x/2 · tanh(x/2)."""
    if SILU:
        weights = half + half * _tanh(half) if FAST else 2 * half * tl.sigmoid(2 * half)
    else:
        weights = 2 * tl.maximum(half, 0.0)
    return weights


@triton.jit
def _weights_and_slopes(half, SILU: tl.constexpr, FAST: tl.constexpr):
    """φ(2 · half) and 2 · φ'(2 · half). SiLU'(x) = σ + x σ (1 − σ), so with A = SiLU(x), 2 SiLU' = 2σ + 2A (1 − σ)."""
    if SILU:
        if FAST:
            tanh = _tanh(half)
            twice = 1 + tanh
            weights = half * twice
            slopes = twice + (weights - weights * tanh)
        else:
            sigma = tl.sigmoid(2 * half)
            weights = 2 * half * sigma
            slopes = 2 * (sigma + weights * (1 - sigma))
    else:
        weights = 2 * tl.maximum(half, 0.0)
        slopes = tl.where(half > 0, 2.0, 0.0)
    return weights, slopes


@triton.jit
def _kept(seed, head, queries, keys, length, DROPOUT):
    """0 where a weight is dropped, else 1 / (1 − p)."""
    numbers = tl.rand(seed + head, (queries * length + keys).to(tl.uint32))
    return tl.where(numbers >= DROPOUT, 1 / (1 - DROPOUT), 0.0)


@triton.jit
def _block(blocks, OWN: tl.constexpr):
    """The program's head, counted over all rows, and its tokens: the first one, and all."""
    begin = tl.program_id(0) % blocks * OWN
    return tl.program_id(0) // blocks, begin, begin + tl.arange(0, OWN)


@triton.jit
def _row(offsets, mask, row, HAS_MASK: tl.constexpr):
    """A row's first token, its number of tokens, those up to its last valid one, 1 / number of valid tokens."""
    first = tl.load(offsets + row).to(tl.int64)
    size = (tl.load(offsets + row + 1).to(tl.int64) - first).to(tl.int32)
    extent, count = size, size
    if HAS_MASK:
        extent, count = size * 0, size * 0
        for start in range(0, size, 512):
            tokens = start + tl.arange(0, 512)
            valid = tl.load(mask + first + tokens, mask=tokens < size, other=0).to(tl.int32)
            count += tl.sum(valid)
            extent = tl.maximum(extent, tl.max(tl.where(valid > 0, tokens + 1, 0)))
    return first, size, extent, 1 / tl.maximum(count, 1).to(tl.float32)


@triton.jit
def _load(base, tokens, stride, kept, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    """A head's vectors (tokens, WIDTH); zero where not kept and beyond HEAD."""
    dims = tl.arange(0, WIDTH)
    kept = kept[:, None] & (dims < HEAD)[None, :] if HEAD < WIDTH else kept[:, None]
    return tl.load(base + tokens.to(tl.int64)[:, None] * stride + dims[None, :], mask=kept, other=0.0)


@triton.jit
def _load_keys(
    of_head,
    width,
    mask,
    first,
    tokens,
    extent,
    stride,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    """Keys and values of a head; zero where the token is not valid."""
    kept = tokens < extent
    if HAS_MASK:
        kept = kept & (tl.load(mask + first + tokens, mask=kept, other=0) != 0)
    k = _load(of_head + width, tokens, stride, kept, HEAD, WIDTH)
    v = _load(of_head + 2 * width, tokens, stride, kept, HEAD, WIDTH)
    return k, v


@triton.jit
def _store(base, tokens, stride, size, values, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    dims = tl.arange(0, WIDTH)
    kept = (tokens < size)[:, None] & (dims < HEAD)[None, :]
    place = base + tokens.to(tl.int64)[:, None] * stride + dims[None, :]
    tl.store(place, values.to(base.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=VARYING)
def _attention_outputs(
    qkv,
    offsets,
    mask,
    seed,
    out,
    stride,
    half_scale,
    length,
    blocks,
    heads,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    OWN: tl.constexpr,
    READ: tl.constexpr,
    SILU: tl.constexpr,
    FAST: tl.constexpr,
    HAS_MASK: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head, begin, queries = _block(blocks, OWN)
    first, size, extent, inverse = _row(offsets, mask, head // heads, HAS_MASK)
    width = heads * HEAD
    of_head = qkv + first * stride + head % heads * HEAD
    q = _load(of_head, queries, stride, queries < extent, HEAD, WIDTH)
    sums = tl.zeros((OWN, WIDTH), tl.float32)
    if begin < extent:
        for start in range(0, extent, READ):
            keys = start + tl.arange(0, READ)
            k, v = _load_keys(of_head, width, mask, first, keys, extent, stride, HEAD, WIDTH, HAS_MASK)
            weights = _weights(tl.dot(q, tl.trans(k), input_precision=PRECISION) * half_scale, SILU, FAST)
            if DROPOUT > 0:
                weights *= _kept(tl.load(seed), head, queries[:, None], keys[None, :], length, DROPOUT)
            sums = tl.dot(weights.to(v.dtype), v, sums, input_precision=PRECISION)
    _store(out + first * width + head % heads * HEAD, queries, width, size, sums * inverse, HEAD, WIDTH)


@triton.jit(do_not_specialize=VARYING)
def _attention_key_gradients(
    grad,
    qkv,
    offsets,
    mask,
    seed,
    out,
    stride,
    half_scale,
    length,
    blocks,
    heads,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    OWN: tl.constexpr,
    READ: tl.constexpr,
    SILU: tl.constexpr,
    FAST: tl.constexpr,
    HAS_MASK: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head, begin, keys = _block(blocks, OWN)
    first, size, extent, inverse = _row(offsets, mask, head // heads, HAS_MASK)
    width = heads * HEAD
    of_head = qkv + first * stride + head % heads * HEAD
    k, v = _load_keys(of_head, width, mask, first, keys, extent, stride, HEAD, WIDTH, HAS_MASK)
    v = (v * inverse).to(v.dtype)  # here and not in the sums, so that the slopes do not overflow in float16
    grad_k, grad_v = tl.zeros((OWN, WIDTH), tl.float32), tl.zeros((OWN, WIDTH), tl.float32)
    if begin < extent:
        for start in range(0, extent, READ):
            queries = start + tl.arange(0, READ)
            q = _load(of_head, queries, stride, queries < extent, HEAD, WIDTH)
            g = _load(grad + first * width + head % heads * HEAD, queries, width, queries < extent, HEAD, WIDTH)
            half = tl.dot(k, tl.trans(q), input_precision=PRECISION) * half_scale
            weights, slopes = _weights_and_slopes(half, SILU, FAST)
            slopes *= tl.dot(v, tl.trans(g), input_precision=PRECISION)
            if DROPOUT > 0:
                factors = _kept(tl.load(seed), head, queries[None, :], keys[:, None], length, DROPOUT)
                weights *= factors
                slopes *= factors
            grad_v = tl.dot(weights.to(g.dtype), g, grad_v, input_precision=PRECISION)
            grad_k = tl.dot(slopes.to(q.dtype), q, grad_k, input_precision=PRECISION)
    # Key and value of a token that is not valid were read as zero: its weights are zero, and so are their gradients.
    of_head = out + first * 3 * width + head % heads * HEAD
    _store(of_head + width, keys, 3 * width, size, grad_k * half_scale, HEAD, WIDTH)
    _store(of_head + 2 * width, keys, 3 * width, size, grad_v * inverse, HEAD, WIDTH)


@triton.jit(do_not_specialize=VARYING)
def _attention_query_gradients(
    grad,
    qkv,
    offsets,
    mask,
    seed,
    out,
    stride,
    half_scale,
    length,
    blocks,
    heads,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    OWN: tl.constexpr,
    READ: tl.constexpr,
    SILU: tl.constexpr,
    FAST: tl.constexpr,
    HAS_MASK: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head, begin, queries = _block(blocks, OWN)
    first, size, extent, inverse = _row(offsets, mask, head // heads, HAS_MASK)
    width = heads * HEAD
    of_head = qkv + first * stride + head % heads * HEAD
    q = _load(of_head, queries, stride, queries < extent, HEAD, WIDTH)
    g = _load(grad + first * width + head % heads * HEAD, queries, width, queries < extent, HEAD, WIDTH)
    grad_q = tl.zeros((OWN, WIDTH), tl.float32)
    if begin < extent:
        for start in range(0, extent, READ):
            keys = start + tl.arange(0, READ)
            k, v = _load_keys(of_head, width, mask, first, keys, extent, stride, HEAD, WIDTH, HAS_MASK)
            half = tl.dot(q, tl.trans(k), input_precision=PRECISION) * half_scale
            _, slopes = _weights_and_slopes(half, SILU, FAST)
            # 1 / n here, in float32: in float16 g / n would underflow, and the product without it overflow.
            slopes *= tl.dot(g, tl.trans(v), input_precision=PRECISION) * inverse
            if DROPOUT > 0:
                slopes *= _kept(tl.load(seed), head, queries[:, None], keys[None, :], length, DROPOUT)
            grad_q = tl.dot(slopes.to(k.dtype), k, grad_q, input_precision=PRECISION)
    _store(out + first * 3 * width + head % heads * HEAD, queries, 3 * width, size, grad_q * half_scale, HEAD, WIDTH)


# By kernel and width of a head (narrower ones as 32): the fastest in `benchmarks/gpu.py --only blocks` on an H200.
# The gradients of queries were only measured for 32; the others are by analogy with those of keys. The sizes are fixed,
# and not tuned at run time, because other sizes add in another order.
BLOCKS = {
    (_attention_outputs, 32): Blocks(own=128, read=64, warps=4, stages=3),
    (_attention_outputs, 64): Blocks(own=128, read=64, warps=4, stages=3),
    (_attention_outputs, 128): Blocks(own=64, read=64, warps=4, stages=3),
    (_attention_key_gradients, 32): Blocks(own=64, read=64, warps=4, stages=3),
    (_attention_key_gradients, 64): Blocks(own=128, read=64, warps=8, stages=3),
    (_attention_key_gradients, 128): Blocks(own=128, read=64, warps=8, stages=3),
    (_attention_query_gradients, 32): Blocks(own=64, read=64, warps=4, stages=3),
    (_attention_query_gradients, 64): Blocks(own=64, read=64, warps=4, stages=3),
    (_attention_query_gradients, 128): Blocks(own=128, read=64, warps=8, stages=3),
}
# In float32, and for heads wider than 64 on GPUs with less than 160 KiB of shared memory per block: an L40S or RTX 4090
# has 99. An A100 has 163 and uses those above.
SMALL_BLOCKS = Blocks(own=64, read=32, warps=4, stages=2)


def pointwise_attention(
    qkv: Tensor,
    offsets: Tensor,
    mask: Tensor | None,
    max_length: int,
    n_heads: int,
    activation: str,
    dropout: float = 0.0,
) -> Tensor:
    """φ(Q Kᵀ / √d) V / n of packed or padded rows.

    Args:
        qkv: (N, 3·D) bfloat16, float16 or, slowly, float32: queries, keys and values, each by head. The last stride
            is 1.
        offsets: (B + 1,) int64 or int32, first token of each row, and N.
        mask: (N,) bool, True on valid tokens; None: all are.
        max_length: not less than the length of the longest row; outputs beyond it are left uninitialised.
        n_heads: H; a head's width D / H is at most MAX_HEAD.
        activation: silu or relu.
        dropout: probability of dropping a weight.

    Returns:
        (N, D), of qkv's dtype; zero after a row's last valid token.
    """
    seed = torch.randint(2**62, (1,), device=qkv.device) if dropout > 0 else None
    return _attention(qkv, offsets, mask, seed, max_length, n_heads, activation, dropout)


@torch.library.custom_op("ugt::pointwise_attention", mutates_args=())
def _attention(
    qkv: Tensor,
    offsets: Tensor,
    mask: Tensor | None,
    seed: Tensor | None,
    max_length: int,
    n_heads: int,
    activation: str,
    dropout: float,
) -> Tensor:
    out = qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)
    _launch(_attention_outputs, (qkv,), out, offsets, mask, seed, max_length, n_heads, activation, dropout)
    return out


@torch.library.custom_op("ugt::pointwise_attention_backward", mutates_args=())
def _gradients(
    grad: Tensor,
    qkv: Tensor,
    offsets: Tensor,
    mask: Tensor | None,
    seed: Tensor | None,
    max_length: int,
    n_heads: int,
    activation: str,
    dropout: float,
) -> Tensor:
    out = qkv.new_empty(qkv.shape)
    for kernel in (_attention_key_gradients, _attention_query_gradients):
        _launch(kernel, (grad.contiguous(), qkv), out, offsets, mask, seed, max_length, n_heads, activation, dropout)
    return out


@_attention.register_fake
def _(qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)


@_gradients.register_fake
def _(grad: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.arguments = inputs[4:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(grad, *ctx.saved_tensors, *ctx.arguments), *[None] * 7


_attention.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.ugt.pointwise_attention)
def _operations(qkv_shape: torch.Size, offsets: Any, mask: Any, seed: Any, max_length: int, *_: Any, **__: Any) -> int:
    """Two products over rows of max_length, for PyTorch's FlopCounterMode; skipped tokens count as others do."""
    return 2 * 2 * qkv_shape.numel() // 3 * max_length


@register_flop_formula(torch.ops.ugt.pointwise_attention_backward)
def _backward_operations(grad_shape: torch.Size, *inputs: Any, **_: Any) -> int:
    """Seven products: the scores and the gradients of weights in both kernels, and those of q, k and v."""
    max_length = inputs[4]
    return 7 * 2 * grad_shape.numel() * max_length


def _launch(
    kernel: Any,
    inputs: tuple[Tensor, ...],
    out: Tensor,
    offsets: Tensor,
    mask: Tensor | None,
    seed: Tensor | None,
    max_length: int,
    n_heads: int,
    activation: str,
    dropout: float,
) -> None:
    qkv = inputs[-1]
    assert qkv.stride(1) == 1
    head = qkv.shape[1] // (3 * n_heads)
    width = max(16, triton.next_power_of_2(head))  # the tensor cores' smallest product
    half = qkv.dtype in (torch.float16, torch.bfloat16)
    fits = half and (width < 128 or _has_much_shared_memory(qkv.device))
    sizes = BLOCKS[kernel, max(32, width)] if fits else SMALL_BLOCKS
    blocks = triton.cdiv(max_length, sizes.own)
    programs = (len(offsets) - 1) * n_heads * blocks
    if programs == 0:
        return
    offsets = offsets.contiguous()
    with torch.cuda.device_of(qkv):  # Triton launches on the current device
        kernel[(programs,)](
            *inputs,
            offsets,
            offsets if mask is None else mask.contiguous(),  # without a mask or a seed, not read
            offsets if seed is None else seed,
            out,
            qkv.stride(0),
            0.5 / math.sqrt(head),
            max_length,
            blocks,
            n_heads,
            HEAD=head,
            WIDTH=width,
            OWN=sizes.own,
            READ=sizes.read,
            SILU=activation == "silu",
            FAST=half and qkv.is_cuda,
            HAS_MASK=mask is not None,
            DROPOUT=dropout,
            PRECISION="tf32" if half or tf32_is_allowed() else "ieee",
            num_warps=sizes.warps,
            num_stages=sizes.stages,
        )


def _has_much_shared_memory(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    properties = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin >= 160 << 10  # type: ignore[attr-defined]
