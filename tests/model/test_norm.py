"""Group layer norm compared with one layer norm per token type."""

import pytest
import torch
import torch.nn.functional as F

from tests.model.accumulations import Accumulations
from ugt_composer.model.activation_checkpointing import run_layer
from ugt_composer.model.norm import GroupLayerNorm

B, S, D, TYPES = 3, 7, 6, 4


def make(dtype=torch.float32):
    torch.manual_seed(0)
    norm = GroupLayerNorm(D, TYPES)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (2 * torch.randn(B, S, D) + 1).to(dtype).requires_grad_()
    types = torch.randint(0, TYPES - 1, (B, S))  # the last type has no token
    return norm.to(dtype), x, types


def layer_norm_of_each_token(norm, x, types):
    tokens = zip(x.flatten(0, 1), types.flatten().tolist(), strict=True)
    rows = [F.layer_norm(token, (D,), norm.weight[kind], norm.bias[kind], norm.eps) for token, kind in tokens]
    return torch.stack(rows).view_as(x)


def results(norm, x, types, forward=None):
    """Output and gradients of x, γ and β."""
    out = (norm if forward is None else forward)(x, types)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return out.detach(), *torch.autograd.grad((out * weight).sum(), (x, norm.weight, norm.bias))


def test_it_is_a_layer_norm_per_token_type():
    norm, x, types = make()
    expected = results(norm, x, types, lambda x, types: layer_norm_of_each_token(norm, x, types))
    for found, other in zip(results(norm, x, types), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_finite_differences():
    norm, x, types = make(torch.float64)
    arguments = (x, norm.weight, norm.bias)

    def forward(x, weight, bias):
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x, types))

    assert torch.autograd.gradcheck(forward, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_backward_pass_keeps_little_but_the_input(dtype):
    d_model = 64
    norm, x = GroupLayerNorm(d_model, TYPES).to(dtype), torch.randn(B, S, d_model, dtype=dtype, requires_grad=True)
    kept = {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):  # parameters are kept anyway
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm(x, torch.zeros(B, S, dtype=torch.long))
    of_a_token = 8 + 2 * 4  # its type, its mean and deviation
    assert sum(kept.values()) <= x.untyped_storage().nbytes() + B * S * of_a_token


@pytest.mark.parametrize(
    ("inputs", "weights", "autocast", "expected"),
    [
        (torch.float32, torch.float32, False, torch.float32),
        (torch.bfloat16, torch.bfloat16, False, torch.bfloat16),
        (torch.float16, torch.float16, False, torch.float16),
        (torch.bfloat16, torch.float32, False, torch.float32),
        (torch.float32, torch.float32, True, torch.float32),
        (torch.bfloat16, torch.bfloat16, True, torch.float32),
    ],
)
def test_halves_are_rounded_once_at_the_end(inputs, weights, autocast, expected):
    norm, x, types = make()
    norm, x = norm.to(weights), x.detach().to(inputs).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = results(norm, x, types)
    full = make()[0].double()
    full.load_state_dict(norm.state_dict())
    exact = results(full, x.detach().double().requires_grad_(), types)
    assert [tensor.dtype for tensor in found] == [expected, inputs, weights, weights]
    for mine, other in zip(found, exact, strict=True):
        eps = torch.finfo(mine.dtype).eps
        torch.testing.assert_close(mine.double(), other, rtol=2 * eps, atol=16 * eps)


def test_compiled_it_gives_the_same():
    norm, x, types = make()
    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
    for found, other in zip(results(norm, x, types, compiled), results(norm, x, types), strict=True):
        torch.testing.assert_close(found, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_gradients_of_scale_and_shift_are_not_added_by_atomics(compiled):
    norm, x, types = make()
    forward = torch.compile(norm, backend="aot_eager", fullgraph=True) if compiled else norm
    forward(x, types).sum().backward()  # compiles before accumulations are recorded
    with Accumulations() as accumulations:
        forward(x, types).sum().backward()
    assert accumulations.found == []


def test_checkpointed_it_gives_the_same():
    norm, x, types = make()
    checkpointed = results(norm, x, types, lambda x, types: run_layer(norm, True, x, types))
    for found, other in zip(checkpointed, results(norm, x, types), strict=True):
        torch.testing.assert_close(found, other, rtol=0, atol=0)
