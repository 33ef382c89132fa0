"""LAMB over lists of tensors, compared with that of torch_optimizer, which updates them one by one."""

import pytest
import torch
from torch_optimizer import Lamb as OneByOne

from ugt_composer.training.lamb import Lamb

SHAPES = {"matrix": (6, 5), "bias of zeros": (7,), "table of a large norm": (300, 8), "never used": (3,)}


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for shape in SHAPES.values()]
    return [torch.nn.Parameter(value * ("zeros" not in name)) for name, value in zip(SHAPES, values, strict=True)]


def groups(own: list[torch.nn.Parameter]) -> list[dict]:
    return [{"params": own[::2], "weight_decay": 0.1}, {"params": own[1::2], "weight_decay": 0.0}]


def test_it_takes_the_steps_of_the_one_by_one_form():
    ours, theirs = parameters(), parameters()
    settings = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-6}
    optimizers = [Lamb(groups(ours), **settings), OneByOne(groups(theirs), **settings)]
    assert ours[2].norm() > 10  # so large that the trust ratio is bounded
    generator = torch.Generator().manual_seed(1)
    for step in range(8):
        for one, other in zip(ours[:3], theirs[:3], strict=True):
            one.grad = torch.randn(one.shape, generator=generator) * 10.0 ** (step - 4)
            if step == 5:
                one.grad.zero_()
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours[3], parameters()[3])
    assert ours[3] not in optimizers[0].state


def test_its_state_is_tensors_of_float32():
    own = parameters()[:2]
    optimizer = Lamb(own, lr=0.1)
    for parameter in own:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.step()
    for parameter in own:
        state = optimizer.state[parameter]
        assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert state["step"].shape == ()
        assert state["step"].item() == 2
        assert all(value.dtype == torch.float32 for value in state.values())
        assert state["exp_avg"].shape == parameter.shape


def test_a_step_reads_nothing_from_the_device():
    """On the meta device any read of a value raises."""
    own = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in SHAPES.values()]
    optimizer = Lamb(groups(own), lr=0.1)
    for parameter in own:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    one_by_one = OneByOne(own, lr=0.1)
    with pytest.raises((RuntimeError, NotImplementedError)):
        one_by_one.step()
