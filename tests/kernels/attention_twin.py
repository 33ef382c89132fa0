"""Pointwise attention as loops over rows and heads, and examples to compare the kernels with it."""

import math

import torch
import torch.nn.functional as F

PHI = {"silu": F.silu, "relu": F.relu}


def loops(qkv, lengths, mask, n_heads, activation, factors=None):
    """Outputs (N, D); factors (B, H, S, S) multiply the weights."""
    d_model = qkv.shape[1] // 3
    outputs, first = [], 0
    for row, length in enumerate(lengths):
        tokens, valid = qkv[first : first + length], mask[first : first + length]
        extent = int(valid.nonzero().max()) + 1 if valid.any() else 0
        heads = []
        for head, (q, k, v) in enumerate(
            zip(*(part.chunk(n_heads, 1) for part in tokens.split(d_model, 1)), strict=True)
        ):
            weights = PHI[activation](q @ k.T / math.sqrt(q.shape[1])) * valid / max(1, int(valid.sum()))
            if factors is not None:
                weights = weights * factors[row, head, :length, :length]
            heads.append((weights @ v) * (torch.arange(length) < extent)[:, None])
        outputs.append(torch.cat(heads, 1))
        first += length
    return torch.cat(outputs)


def example(lengths, n_heads, head, holes, dtype=torch.float32, seed=0):
    """A wider tensor whose first three parts are queries, keys and values, as in the layer; offsets; mask."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    projected = torch.randn(tokens, 4 * n_heads * head, generator=generator).to(dtype).requires_grad_()
    mask = torch.rand(tokens, generator=generator) > 0.3 if holes else torch.ones(tokens, dtype=torch.bool)
    return projected, F.pad(torch.tensor(lengths).cumsum(0), (1, 0)), mask


def run(attention, projected):
    """Outputs, and the gradient of the projected tokens."""
    width = projected.shape[1] // 4 * 3
    out = attention(projected[:, :width])
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device, out.dtype))
    return out.detach(), projected.grad


def both(lengths, n_heads, head, activation="silu", holes=False, dtype=torch.float32, max_length=None, device="cpu"):
    """(outputs, gradient) of the kernels, and in float64 of the loops."""
    from ugt_composer.kernels.pointwise_attention import pointwise_attention

    projected, offsets, mask = example(lengths, n_heads, head, holes, dtype)
    longest = max_length or max(lengths)
    given, places = (mask.to(device) if holes else None), offsets.to(device)
    found = run(
        lambda qkv: pointwise_attention(qkv, places, given, longest, n_heads, activation),
        projected.detach().to(device).requires_grad_(),
    )
    exact = projected.detach().double().requires_grad_()
    wanted = run(lambda qkv: loops(qkv, lengths, mask, n_heads, activation), exact)
    return [tensor.cpu() for tensor in found], wanted
