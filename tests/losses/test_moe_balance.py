import pytest
import torch

from ugt_composer.losses.moe_balance import MoEBalanceLoss
from ugt_composer.model.moe import balance_loss

EXPERTS = 8


@pytest.mark.parametrize("tokens", [8, 1000])
def test_a_uniform_router_gives_one(tokens):
    counts = torch.full((3, EXPERTS), tokens, dtype=torch.int64)
    loss, metrics = MoEBalanceLoss()(counts, counts.float() / EXPERTS)
    assert loss.item() == pytest.approx(1.0)
    assert loss.dtype == torch.float32
    assert metrics == {}


@pytest.mark.parametrize("used", [1, 2, 4])
def test_a_router_collapsed_to_k_experts_gives_e_over_k(used):
    counts = torch.zeros(2, EXPERTS)
    counts[:, :used] = 10
    loss, _ = MoEBalanceLoss()(counts, 0.5 * counts)
    assert loss.item() == pytest.approx(EXPERTS / used)


def test_layers_are_averaged():
    counts = torch.ones(2, EXPERTS)
    counts[1, 1:] = 0
    assert balance_loss(counts, counts).item() == pytest.approx((1 + EXPERTS) / 2)


def test_equals_the_paper_on_tokens():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.softmax(torch.randn(50, EXPERTS, generator=generator), dim=-1)
    chosen = probabilities.topk(2).indices
    fractions = torch.tensor([(chosen == expert).sum().item() / chosen.numel() for expert in range(EXPERTS)])
    expected = EXPERTS * (fractions * probabilities.mean(dim=0)).sum()
    counts = torch.bincount(chosen.flatten(), minlength=EXPERTS)
    torch.testing.assert_close(balance_loss(counts[None], probabilities.sum(dim=0)[None]), expected)


def test_gradient_pushes_probability_away_from_loaded_experts():
    counts = torch.tensor([[3.0, 1.0, 0.0, 2.0]])
    sums = torch.tensor([[1.5, 1.0, 0.5, 3.0]], requires_grad=True)
    loss = balance_loss(counts, sums)
    loss.backward()
    shares = counts / counts.sum()
    torch.testing.assert_close(sums.grad, (4 * shares - loss.detach()) / sums.detach().sum())  # the quotient rule


def test_no_tokens_give_zero_with_a_gradient():
    sums = torch.zeros(2, EXPERTS, requires_grad=True)
    loss, _ = MoEBalanceLoss()(torch.zeros(2, EXPERTS), sums)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(sums.grad).all()
