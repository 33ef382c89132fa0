"""Attention with a relative time bias compared with loops, and its gradients with finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.model.test_time_buckets import bucket_by_integers
from ugt_composer.model import time_bias as module
from ugt_composer.model.attention import PointwiseAttention
from ugt_composer.model.history_tokens import HistoryTokens
from ugt_composer.model.pointwise_product import ACTIVATIONS
from ugt_composer.model.time_bias import biased_pointwise_product, time_bias

B, H, S, D, K = 3, 2, 5, 3, 6


@pytest.fixture(params=[1 << 20, 2 * S * S * (1 + K) * 4, 1], ids=["at once", "two rows", "one row"])
def pieces(request, monkeypatch):
    monkeypatch.setitem(module.PIECE_BYTES, "cpu", request.param)


def make(dtype=torch.float32):
    """q, k, v, bias, times; with equal, unknown and distant times."""
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(B, H, S, D, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]
    bias = torch.randn(H, 1 + K, generator=generator, dtype=dtype).requires_grad_()
    times = torch.tensor([[0, 0, 1, 40, 10**9], [-1, 5, 600, 700, 10**6], [-1] * 5])
    return *vectors, bias, times


def product(inputs, times, activation="silu"):
    q, k, v, bias = inputs
    return biased_pointwise_product(q, k, v, bias, times, activation)


def biases_by_loops(bias, times):
    """(B, H, S, S)."""
    rows = []
    for row in times.tolist():
        buckets = [[0 if min(i, j) < 0 else bucket_by_integers(abs(i - j), K) for j in row] for i in row]
        rows.append(torch.stack([torch.stack([bias[:, bucket] for bucket in line], -1) for line in buckets], -2))
    return torch.stack(rows)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_values_and_gradients_are_those_of_loops(activation):
    *ours, times = make()
    *theirs, _ = make()
    found = product(ours, times, activation)
    scores = theirs[0] @ theirs[1].transpose(-1, -2) + biases_by_loops(theirs[3], times)
    expected = ACTIVATIONS[activation](scores) @ theirs[2]
    torch.testing.assert_close(found, expected)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_gradients_are_those_of_finite_differences(activation):
    *inputs, times = make(torch.float64)
    assert torch.autograd.gradcheck(lambda *x: product(x, times, activation), inputs)
    assert torch.autograd.gradcheck(lambda bias: time_bias(bias, times).sin(), inputs[3])


def test_the_operators_are_what_they_promise_to_the_compiler():
    inputs = make()
    torch.library.opcheck(module._product, (*inputs, "silu"))
    q, k, v, bias, times = (tensor.detach() for tensor in inputs)
    torch.library.opcheck(module._gradients, (torch.randn_like(q), q, k, v, bias, times, "silu"))


def test_in_half_precision_the_biases_gradient_is_summed_in_float32():
    *inputs, times = make()
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        found = product(inputs, times)
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    assert inputs[3].grad.dtype == torch.float32
    product(exact, times).sum().backward()
    for mine, other in zip(inputs, exact, strict=True):
        assert (mine.grad - other.grad).norm() < 0.02 * other.grad.norm()


@pytest.mark.parametrize("dropout", [0.0, 1e-9])  # with dropout, the weights of all heads exist
def test_a_layer_equals_loops_whichever_way_it_computes(dropout):
    torch.manual_seed(0)
    attention = PointwiseAttention(d_model=8, n_heads=2, dropout=dropout, bias_buckets=K)
    torch.nn.init.normal_(attention.time_bias)
    times, mask = make()[-1][:2], torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]]).bool()
    x = torch.randn(2, S, 8)
    q, k, v, gate = attention.in_proj(x).chunk(4, dim=-1)
    biases, mixed = biases_by_loops(attention.time_bias, times), torch.zeros(2, S, 8)
    for row in range(2):
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            for i in range(S):
                for j in range(S):
                    if mask[row, j]:
                        score = q[row, i, part] @ k[row, j, part] / math.sqrt(4) + biases[row, head, i, j]
                        mixed[row, i, part] += F.silu(score) * v[row, j, part] / mask[row].sum()
    expected = attention.out_proj(attention.norm(mixed) * F.silu(gate))
    found = attention(x, HistoryTokens(mask), times)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(y.square().sum(), attention.time_bias)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
