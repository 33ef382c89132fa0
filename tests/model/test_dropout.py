import pytest
import torch

from ugt_composer.model.dropout import Dropout


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (1000, 1003)])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_elements_are_dropped_or_scaled_so_that_their_mean_stays(shape, p):
    torch.manual_seed(1)
    x = torch.ones(shape, requires_grad=True)
    y = Dropout(p)(x)
    y.sum().backward()
    assert torch.equal(y, x.grad)
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-3, atol=0)
    if y.numel() > 10_000:
        assert y.mean().item() == pytest.approx(1, abs=5 * (p / (1 - p) / y.numel()) ** 0.5)


def test_draws_are_independent_of_their_neighbours():
    torch.manual_seed(2)
    zeros = (Dropout(0.5)(torch.ones(100_000)) == 0).float()
    for distance in (1, 2, 3, 4, 8):
        both = (zeros[distance:] * zeros[:-distance]).mean().item()
        assert both == pytest.approx(0.25, abs=0.01)


def test_a_seed_decides_the_draws():
    x = torch.ones(501)
    torch.manual_seed(3)
    first, second = Dropout(0.3)(x), Dropout(0.3)(x)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.3)(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_keeping_or_dropping_everything_needs_no_draw(p):
    x = torch.ones(100)
    assert torch.equal(Dropout(p)(x), x * (1 - p))
    assert torch.equal(Dropout(p).eval()(x), x)
