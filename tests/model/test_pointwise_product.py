import pytest
import torch

from ugt_composer.model import pointwise_product as module
from ugt_composer.model.pointwise_product import ACTIVATIONS, pointwise_product

N, S, D = 6, 5, 3


@pytest.fixture(params=[1 << 20, 2 * S * S * 4, 1], ids=["at once", "two heads", "one head"], autouse=True)
def pieces(request, monkeypatch):
    monkeypatch.setitem(module.PIECE_BYTES, "cpu", request.param)


def make(dtype=torch.float32, heads=N):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(heads, S, D, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_values_and_gradients_are_those_of_the_plain_form(activation):
    ours, theirs = make(), make()
    found = pointwise_product(*ours, activation)
    expected = ACTIVATIONS[activation](theirs[0] @ theirs[1].transpose(1, 2)) @ theirs[2]
    torch.testing.assert_close(found, expected)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_gradients_are_those_of_finite_differences(activation):
    assert torch.autograd.gradcheck(lambda *x: pointwise_product(*x, activation), make(torch.float64))


def test_no_head_is_no_work():
    assert pointwise_product(*make(heads=0), "silu").shape == (0, S, D)


def test_the_weights_are_not_kept_for_the_backward_pass():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda x: x):
        pointwise_product(*make(), "silu")
    assert set(kept) == {(N, S, D)}
