"""Layers against brute-force twins."""

import math

import pytest
import torch
import torch.nn.functional as F

from ugt_composer.model.attention import PointwiseAttention
from ugt_composer.model.moe import MoEFeedForward, balance_loss
from ugt_composer.model.norm import GroupLayerNorm


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_pointwise_attention_equals_loops(activation):
    torch.manual_seed(0)
    attention = PointwiseAttention(d_model=8, n_heads=2, dropout=0.0, activation=activation).eval()
    x, mask = torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]]).bool()
    phi = {"silu": F.silu, "relu": F.relu}[activation]
    q, k, v, gate = attention.in_proj(x).chunk(4, dim=-1)
    mixed = torch.zeros(2, 5, 8)
    for row in range(2):
        for head in (slice(0, 4), slice(4, 8)):
            for i in range(5):
                for j in range(5):
                    if mask[row, j]:
                        weight = phi(q[row, i, head] @ k[row, j, head] / math.sqrt(4))
                        mixed[row, i, head] += weight * v[row, j, head] / mask[row].sum()
    expected = attention.out_proj(attention.norm(mixed) * phi(gate))
    torch.testing.assert_close(attention(x, mask), expected, rtol=1e-5, atol=1e-5)


def test_group_layer_norm_is_a_layer_norm_per_token_type():
    torch.manual_seed(0)
    norm = GroupLayerNorm(d_model=6, num_token_types=3)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x, types = torch.randn(2, 4, 6), torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]])
    actual = norm(x, types)
    for row in range(2):
        for i in range(4):
            kind = types[row, i]
            expected = F.layer_norm(x[row, i], (6,), norm.weight[kind], norm.bias[kind])
            torch.testing.assert_close(actual[row, i], expected)


def make_moe(capacity_factor=None, top_k=2):
    torch.manual_seed(0)
    moe = MoEFeedForward(8, 12, num_experts=4, top_k=top_k, capacity_factor=capacity_factor, dropout=0.0)
    for parameter in (moe.up, moe.down, moe.up_bias, moe.down_bias):
        torch.nn.init.normal_(parameter)
    return moe


def masked_passes(moe, x, mask, most=None):
    """Every expert over all tokens, weighted by its gate; `most` tokens an expert, first come first served."""
    probs = moe.router(x).softmax(-1)
    gates, experts = probs.topk(moe.top_k, dim=-1)
    gates = gates / gates.sum(-1, keepdim=True)
    out = torch.zeros_like(x)
    for expert in range(4):
        hidden = F.silu(x @ moe.up[expert] + moe.up_bias[expert]) @ moe.down[expert] + moe.down_bias[expert]
        taken = 0
        for row, i in mask.nonzero().tolist():
            for choice in range(moe.top_k):
                if experts[row, i, choice] == expert and (most is None or taken < most):
                    out[row, i] += gates[row, i, choice] * hidden[row, i]
                    taken += 1
    return out


def test_sorted_dispatch_equals_masked_passes():
    moe = make_moe().eval()
    x, mask = torch.randn(3, 5, 8), torch.rand(3, 5) < 0.7
    actual, stats = moe(x, mask)
    torch.testing.assert_close(actual, masked_passes(moe, x, mask), rtol=1e-4, atol=1e-5)
    assert stats.counts.sum() == 2 * mask.sum()


def test_capacity_drops_the_tokens_over_it_and_only_in_training():
    moe = make_moe(capacity_factor=0.5).train()
    x, mask = torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)
    most = math.ceil(0.5 * 15 * 2 / 4)
    torch.testing.assert_close(moe(x, mask)[0], masked_passes(moe, x, mask, most), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moe.eval()(x, mask)[0], masked_passes(moe, x, mask), rtol=1e-4, atol=1e-5)


def test_ample_capacity_equals_dropless_and_so_do_the_gradients():
    x, mask = torch.randn(3, 5, 8), torch.rand(3, 5) < 0.7
    gradients = []
    for factor in (4.0, None):
        moe = make_moe(capacity_factor=factor).train()
        moe(x, mask)[0].pow(2).sum().backward()
        gradients.append([p.grad for p in moe.parameters()])
    for ample, dropless in zip(*gradients, strict=True):
        torch.testing.assert_close(ample, dropless, rtol=1e-4, atol=1e-4)


def test_an_expert_without_tokens_gets_a_zero_gradient():
    moe = make_moe(top_k=1).eval()
    moe(torch.randn(1, 1, 8), torch.ones(1, 1, dtype=torch.bool))[0].sum().backward()
    assert (moe.up.grad.abs().sum((1, 2)) > 0).sum() == 1


@pytest.mark.parametrize("collapsed_to", [1, 2, 4, 8])
def test_balance_loss_is_one_when_uniform_and_e_over_k_when_collapsed(collapsed_to):
    shares = torch.zeros(3, 8)
    shares[:, :collapsed_to] = 100 / collapsed_to
    torch.testing.assert_close(balance_loss(shares, shares), torch.tensor(8 / collapsed_to))


def test_balance_loss_without_tokens_is_zero():
    assert balance_loss(torch.zeros(2, 4), torch.zeros(2, 4, requires_grad=True)) == 0


def test_every_expert_on_every_token_gives_what_dispatch_gives():
    torch.manual_seed(0)
    layer = MoEFeedForward(8, 12, num_experts=5, top_k=2, capacity_factor=None, dropout=0.0).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, mask = torch.randn(4, 6, 8), torch.rand(4, 6) > 0.3
    expected, stats = layer(x, mask)
    layer.all_experts = True
    found, same_stats = layer(x, mask)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(same_stats, stats)
