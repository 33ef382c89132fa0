"""The experts by grouped products on a card: where it leaves results undefined, what it waits for, and which bits."""

import pytest
import torch

from tests.model.undefined_rows import UndefinedRows, needs_grouped_mm
from ugt_composer.model.grouped_product import runs_without_waiting
from ugt_composer.model.moe import MoEFeedForward

pytestmark = needs_grouped_mm
E, D, F = 8, 128, 256


def case(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """x (B, T, D) and mask (B, T) whose groups are of some kind."""
    generator = torch.Generator().manual_seed(0)
    rows, length = {"one token": (1, 1), "many tokens": (256, 48)}.get(name, (24, 7))
    x, mask = torch.randn(rows, length, D, generator=generator), torch.ones(rows, length, dtype=torch.bool)
    if name == "some padding":
        mask = torch.rand(rows, length, generator=generator) < 0.6
    if name == "two valid tokens":
        mask = torch.arange(rows * length).view(rows, length) < 2
    if name == "only padding":
        mask = ~mask
    return x.bfloat16().float(), mask


def one_pass(moe: MoEFeedForward, x: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """The outputs (B, T, D), the counts (E,), and the gradients of x and of all parameters."""
    inputs = x.clone().requires_grad_()
    mixed, stats = moe(inputs, mask)
    gradients = torch.autograd.grad(mixed.float().square().sum() / 2, (inputs, *moe.parameters()))
    return [mixed.detach().float(), stats.counts, *gradients]


@pytest.mark.parametrize(
    "name", ["some padding", "no padding", "one token", "two valid tokens", "only padding", "many tokens"]
)
@pytest.mark.parametrize("top_k", [1, 2, E])
def test_grouped_products_in_bfloat16_are_near_float32(gpu, name, top_k):
    torch.manual_seed(0)
    moe = MoEFeedForward(D, F, num_experts=E, top_k=top_k, capacity_factor=None, dropout=0.0)
    for parameter in moe.parameters():
        parameter.data = (torch.randn_like(parameter) * 0.1).bfloat16().float()
    moe, (x, mask) = moe.to(gpu).train(), (tensor.to(gpu) for tensor in case(name))
    moe._is_cheaper_than_waiting = lambda tokens: False
    moe._can_group = lambda tokens: False
    wanted = one_pass(moe, x, mask)
    moe._can_group = lambda tokens: True
    with torch.autocast(gpu.type, torch.bfloat16):
        with UndefinedRows() as undefined:
            found = one_pass(moe, x, mask)
        assert undefined.forward == undefined.backward == 2
        try:
            if runs_without_waiting(gpu, torch.bfloat16, mask.numel() * top_k, E, D, F):
                torch.cuda.set_sync_debug_mode("error")
            again = one_pass(moe, x, mask)
        finally:
            if gpu.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    assert all(map(torch.equal, again, found))
    counts = wanted[1]
    assert torch.equal(found[1], counts)
    # The router's gradient is a difference of experts: of few tokens mostly rounding, with a single expert only that.
    compared = len(found) if top_k > 1 and mask.sum() > 2 else len(found) - 1
    for ours, theirs in zip(found[:compared], wanted[:compared], strict=True):
        assert (ours - theirs).norm() <= 2e-2 * theirs.norm()
    for gradient in found[3:7]:  # up, up_bias, down, down_bias
        assert not gradient[counts == 0].any()
