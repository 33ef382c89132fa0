"""Group layer norm in two Triton kernels, with an optional gate: forward, and all gradients in one pass over the rows.

y = x̂ γ_t + β_t, times φ(gate) if there is a gate; x̂ is x with mean 0 and variance 1 over D, t the row's type and φ =
SiLU or ReLU. With one type it is the layer norm of PyTorch. All arithmetic is in float32.

N rows of width D, K types. Saved for the backward pass are the inputs, and per row the mean and the reciprocal of the
standard deviation.

The gradients of γ and β are summed in a fixed order: each of P programs sums a run of consecutive rows in registers,
and PyTorch sums over P. The same inputs on the same GPU give the same bits.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ugt_composer.kernels import DTYPES, MAX_TYPES, MAX_WIDTH

TILE = 1024  # elements of x that a program reads at once, unless a row is longer
PROGRAMS_PER_PROCESSOR = 4  # of the backward pass: 128 threads of 128 registers fill a multiprocessor's 64 K
FEWEST_TILES = 4  # per program of the backward pass; more programs would cost more in partial sums than they save


class Tile(NamedTuple):
    """Rows that a program reads at once, and the warps that share them."""

    rows: int
    warps: int


@triton.jit
def _read(base, places, kept, other):
    return tl.load(base + places, mask=kept, other=other).to(tl.float32)


@triton.jit
def _entries(types, rows, count, dims, kept, D: tl.constexpr, K: tl.constexpr):
    """The rows' types, the places of their γ and β, and whether these exist. There is a place for every element even
    if all rows share it: loads of one shape get one layout, and nothing is exchanged between threads."""
    kind = rows * 0
    if types is not None:
        kind = tl.load(types + rows, mask=rows < count, other=0)
    return kind, kind * D + dims, kept & (kind >= 0) & (kind < K)


@triton.jit
def _activation(gate, ACTIVATION: tl.constexpr):
    """φ and its derivative. SiLU(g) = g σ(g), SiLU'(g) = σ(g) (1 + g (1 − σ(g)))."""
    if ACTIVATION == "silu":
        sigma = tl.sigmoid(gate)
        value = gate * sigma
        slope = sigma + value * (1 - sigma)
    else:
        value = tl.maximum(gate, 0.0)
        slope = tl.where(gate > 0, 1.0, 0.0)
    return value, slope


# The number of rows differs from batch to batch; specialised, it would compile anew for 1 and for multiples of 16.
@triton.jit(do_not_specialize=["count"])
def _norm_outputs(
    x,
    types,
    weight,
    bias,
    gate,
    out,
    mean,
    rstd,
    count,
    gate_stride,
    eps,
    D: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    dims = tl.arange(0, BLOCK)[None, :]
    is_row, is_dim = rows < count, dims < D
    kept = is_row & is_dim
    values = _read(x, rows * D + dims, kept, 0.0)
    center = tl.sum(values, axis=1, keep_dims=True) / D
    normed = tl.where(is_dim, values - center, 0.0)
    scale = tl.rsqrt(tl.sum(normed * normed, axis=1, keep_dims=True) / D + eps)
    normed *= scale
    _, entries, known = _entries(types, rows, count, dims, kept, D, K)
    # A type that does not exist makes its row NaN; nothing else would show the mistake on a GPU.
    affine = normed * _read(weight, entries, known, float("nan")) + _read(bias, entries, known, 0.0)
    if gate is not None:
        value, _ = _activation(_read(gate, rows * gate_stride + dims, kept, 0.0), ACTIVATION)
        affine *= value
    tl.store(out + rows * D + dims, affine.to(out.dtype.element_ty), mask=kept)
    tl.store(mean + rows, center, mask=is_row)
    tl.store(rstd + rows, scale, mask=is_row)


@triton.jit(do_not_specialize=["count"])
def _norm_gradients(
    grad,
    x,
    types,
    weight,
    bias,
    gate,
    mean,
    rstd,
    grad_x,
    grad_gate,
    grad_weight,
    grad_bias,
    count,
    gate_stride,
    D: tl.constexpr,
    K: tl.constexpr,
    KINDS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    # Everything has three dimensions, (KINDS or 1, rows, D), because a thread then keeps the sums of all types of the
    # elements that it reads: nothing is exchanged between threads until the end.
    kinds = tl.arange(0, KINDS)[:, None, None]
    dims = tl.arange(0, BLOCK)[None, None, :]
    is_dim = dims < D
    weight_sum = tl.zeros((KINDS, ROWS, BLOCK), tl.float32)
    bias_sum = tl.zeros((KINDS, ROWS, BLOCK), tl.float32)
    tiles = tl.cdiv(tl.cdiv(count, ROWS), tl.num_programs(0))
    for tile in range(tl.program_id(0) * tiles, (tl.program_id(0) + 1) * tiles):
        rows = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)[None, :, None]
        is_row = rows < count
        kept = is_row & is_dim
        places = rows * D + dims
        grad_affine = _read(grad, places, kept, 0.0)
        inverse_deviation = _read(rstd, rows, is_row, 0.0)
        normed = (_read(x, places, kept, 0.0) - _read(mean, rows, is_row, 0.0)) * inverse_deviation
        kind, entries, known = _entries(types, rows, count, dims, kept, D, K)
        scale = _read(weight, entries, known, 0.0)
        if gate is not None:
            value, slope = _activation(_read(gate, rows * gate_stride + dims, kept, 0.0), ACTIVATION)
            affine = normed * scale + _read(bias, entries, known, 0.0)
            of_gate = grad_affine * affine * slope
            tl.store(grad_gate + places, of_gate.to(grad_gate.dtype.element_ty), mask=kept)
            grad_affine *= value
        of_weight = grad_affine * normed
        weight_sum += tl.where(kind == kinds, of_weight, 0.0)
        bias_sum += tl.where(kind == kinds, grad_affine, 0.0)
        # Outside of D, grad and so all of these products are 0.
        average = tl.sum(grad_affine * scale, axis=2, keep_dims=True) / D
        slant = tl.sum(of_weight * scale, axis=2, keep_dims=True) / D
        of_x = (grad_affine * scale - average - normed * slant) * inverse_deviation
        tl.store(grad_x + places, of_x.to(grad_x.dtype.element_ty), mask=kept)
    entries = (tl.program_id(0) * K + kinds) * D + dims
    tl.store(grad_weight + entries, tl.sum(weight_sum, axis=1, keep_dims=True), mask=(kinds < K) & is_dim)
    tl.store(grad_bias + entries, tl.sum(bias_sum, axis=1, keep_dims=True), mask=(kinds < K) & is_dim)


def supports(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels take x (…, D) and γ (K, D) or (D,)."""
    width = weight.shape[-1]
    dtypes_fit = x.dtype in DTYPES and weight.dtype in DTYPES
    return dtypes_fit and 0 < width <= MAX_WIDTH and 0 < weight.numel() <= MAX_TYPES * width


def group_layer_norm(
    x: Tensor,
    types: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
    gate: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    """Layer norm with γ and β by type, times φ(gate).

    Args:
        x: (…, D) float32, bfloat16 or float16.
        types: (…) int64, from 0 to K − 1; another value makes its row NaN. None: K is 1.
        weight: (K, D) or (D,), γ.
        bias: (K, D) or (D,), β.
        eps: added to the variance.
        dtype: of the result, one of the three.
        gate: (…, D), one of the three; a slice of a wider tensor is read where it is. None: no gate.
        activation: φ, silu or relu.

    Returns:
        (…, D) of `dtype`.
    """
    assert supports(x, weight)
    assert (bias.shape, bias.dtype) == (weight.shape, weight.dtype)
    assert types is not None or weight.numel() == x.shape[-1]
    assert dtype in DTYPES
    assert activation in ("silu", "relu")
    rows, gates = (None if one is None else one.reshape(-1, x.shape[-1]) for one in (x, gate))
    kinds = None if types is None else types.reshape(-1)
    return _normed(rows, kinds, weight, bias, gates, eps, dtype, activation)[0].view(x.shape)


@torch.library.custom_op("ugt::group_layer_norm", mutates_args=())
def _normed(
    x: Tensor,
    types: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    gate: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """x, gate (N, D), types (N,) → y (N, D), mean (N,), 1 / deviation (N,)."""
    out, mean, rstd = _normed_like(x, dtype)
    count, width = x.shape
    gate = None if gate is None else _with_dense_rows(gate)
    tile = tile_of(width)
    if count > 0:
        with torch.cuda.device_of(x):
            _norm_outputs[(triton.cdiv(count, tile.rows),)](
                x.contiguous(),
                None if types is None else types.contiguous(),
                weight.contiguous(),
                bias.contiguous(),
                gate,
                out,
                mean,
                rstd,
                count,
                0 if gate is None else gate.stride(0),
                eps,
                D=width,
                K=weight.numel() // width,
                BLOCK=triton.next_power_of_2(width),
                ROWS=tile.rows,
                ACTIVATION=activation,
                num_warps=tile.warps,
            )
    return out, mean, rstd


@torch.library.custom_op("ugt::group_layer_norm_backward", mutates_args=())
def _gradients(
    grad: Tensor,
    x: Tensor,
    types: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    gate: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """grad (N, D) of y → the gradients of x, γ, β and the gate; the last is empty if there is none."""
    grad_x, grad_gate = _of_rows(x, gate)
    count, width = x.shape
    gate = None if gate is None else _with_dense_rows(gate)
    types_count = weight.numel() // width
    tile = tile_of(width, types_count)
    programs = min(_programs(x.device), triton.cdiv(count, FEWEST_TILES * tile.rows))
    sums = x.new_empty((2, programs, *weight.shape), dtype=torch.float32)
    if count > 0:
        with torch.cuda.device_of(x):
            _norm_gradients[(programs,)](
                grad.contiguous(),
                x.contiguous(),
                None if types is None else types.contiguous(),
                weight.contiguous(),
                bias.contiguous(),
                gate,
                mean,
                rstd,
                grad_x,
                None if gate is None else grad_gate,
                sums[0],
                sums[1],
                count,
                0 if gate is None else gate.stride(0),
                D=width,
                K=types_count,
                KINDS=triton.next_power_of_2(types_count),
                BLOCK=triton.next_power_of_2(width),
                ROWS=tile.rows,
                ACTIVATION=activation,
                num_warps=tile.warps,
            )
    grad_weight, grad_bias = (total.sum(0).to(weight.dtype) for total in sums)
    return grad_x, grad_weight, grad_bias, grad_gate


@_normed.register_fake
def _(x: Tensor, types: Any, weight: Tensor, bias: Tensor, gate: Any, eps: float, dtype: torch.dtype, _: str) -> Any:
    return _normed_like(x, dtype)


@_gradients.register_fake
def _(grad: Tensor, x: Tensor, types: Any, weight: Tensor, bias: Tensor, gate: Any, *_: Any) -> Any:
    grad_x, grad_gate = _of_rows(x, gate)
    return grad_x, weight.new_empty(weight.shape), weight.new_empty(weight.shape), grad_gate


def _normed_like(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    count = x.shape[0]
    mean, rstd = (x.new_empty(count, dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape, dtype=dtype), mean, rstd


def _of_rows(x: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where the gradients of x and the gate go."""
    return x.new_empty(x.shape), x.new_empty(0) if gate is None else gate.new_empty(gate.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, types, weight, bias, gate, _, _, ctx.activation = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, types, weight, bias, gate, mean, rstd)


def _backward_of(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing does not allow it twice
    grad_x, grad_weight, grad_bias, grad_gate = _gradients(grad, *saved, ctx.activation)
    return grad_x, None, grad_weight, grad_bias, None if saved[4] is None else grad_gate, None, None, None


_normed.register_autograd(_backward_of, setup_context=_save)


def tile_of(width: int, sums: int = 1) -> Tile:
    """The tile for rows of `width`. A thread gets 8 elements (16 bytes in half precision), or 4 if the gradients of γ
    and β of more than 4 types (`sums`) have to stay in its registers."""
    block = triton.next_power_of_2(width)
    rows = max(1, TILE // block)
    per_thread = 8 if sums <= 4 else 4
    return Tile(rows, warps=min(16, rows * block // (32 * per_thread)))


def _programs(device: torch.device) -> int:
    """At most so many programs of the backward pass."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return PROGRAMS_PER_PROCESSOR * processors


def _with_dense_rows(gate: Tensor) -> Tensor:
    return gate if gate.stride(1) == 1 else gate.contiguous()
