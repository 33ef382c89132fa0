"""The Triton kernels on a GPU compared with float64 on a CPU."""

import pytest
import torch

from tests.kernels.attention_twin import both, example, loops, run
from ugt_composer import kernels
from ugt_composer.model.attention import PointwiseAttention
from ugt_composer.model.history_tokens import HistoryTokens

BOUNDS = {torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def kernels_are_usable(gpu):
    if not kernels.are_usable(torch.empty(1, device=gpu)):
        pytest.skip("needs a GPU of compute capability 8.0 or above, and Triton")


def relative(ours, exact) -> float:
    return float((ours.double().cpu() - exact).norm() / exact.norm().clamp(min=1e-12))


@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("n_heads", "head"), [(3, 16), (2, 32), (2, 40), (2, 64), (1, 128)])
def test_pointwise_attention_equals_loops(gpu, n_heads, head, dtype, holes, activation):
    lengths = (700, 1, 0, 128, 129, 333)
    found, wanted = both(lengths, n_heads, head, activation, holes, dtype, max_length=1024, device=gpu)
    for ours, exact in zip(found, wanted, strict=True):
        assert relative(ours, exact) < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS)
def test_dropout_has_its_rate_and_the_gradient_of_its_own_weights(gpu, dtype):
    from ugt_composer.kernels.pointwise_attention import _attention

    rows, n_heads, length, p = 2, 2, 128, 0.25
    projected, offsets, _ = example((length,) * rows, n_heads, 32, holes=False, dtype=dtype)
    offsets, seed = offsets.to(gpu), torch.tensor([99], device=gpu)
    qk = torch.full((rows * length, 2 * n_heads * length), length**-0.25)
    eye = torch.cat((qk, torch.eye(length).repeat(rows, n_heads)), 1).to(gpu)
    factors = length * _attention(eye, offsets, None, seed, length, n_heads, "relu", p).view(rows, length, n_heads, -1)
    factors = factors.transpose(1, 2).double().cpu()
    assert abs((factors == 0).double().mean() - p) < 0.01
    found = run(
        lambda qkv: _attention(qkv, offsets, None, seed, length, n_heads, "silu", p),
        projected.detach().to(gpu).requires_grad_(),
    )
    mask, exact = torch.ones(rows * length, dtype=torch.bool), projected.detach().double().requires_grad_()
    wanted = run(lambda qkv: loops(qkv, (length,) * rows, mask, n_heads, "silu", factors), exact)
    for ours, twin in zip(found, wanted, strict=True):
        assert relative(ours, twin) < BOUNDS[dtype]


def test_the_same_inputs_give_the_same_bits(gpu):
    layer = PointwiseAttention(128, 4, 0.0).to(gpu)
    x = torch.randn(16, 300, 128, device=gpu, requires_grad=True)
    mask = torch.arange(300, device=gpu) < torch.randint(1, 300, (16, 1), device=gpu)
    outputs = []
    for _ in range(3):
        with torch.autocast("cuda", torch.bfloat16):
            out = layer(x, HistoryTokens(mask))
        outputs.append((out, *torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])))
    for again in outputs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(outputs[0], again, strict=True))


@pytest.mark.parametrize("dtype", BOUNDS)
def test_a_layer_with_kernels_is_the_layer_without(gpu, dtype, monkeypatch):
    torch.manual_seed(0)
    layer = PointwiseAttention(128, 4, 0.0).to(gpu)
    torch.nn.init.normal_(layer.norm.weight)
    torch.nn.init.normal_(layer.norm.bias)
    x = torch.randn(4, 200, 128, device=gpu, requires_grad=True)
    mask = torch.arange(200, device=gpu) < torch.tensor([200, 1, 130, 64], device=gpu)[:, None]
    results = {}
    for name, usable, precision in (("kernels", True, dtype), ("half", False, dtype), ("exact", False, None)):
        monkeypatch.setattr(kernels, "_ARE_ENABLED", usable)
        with torch.autocast("cuda", precision, enabled=precision is not None):
            out = layer(x, HistoryTokens(mask))
        gradients = torch.autograd.grad((out.float() * mask[..., None]).square().sum(), [x, *layer.parameters()])
        results[name] = [value.detach().double().cpu() for value in (out * mask[..., None], *gradients)]
    for ours, half, exact in zip(*results.values(), strict=True):
        assert relative(ours, exact) < 1.5 * relative(half, exact) + 1e-4
