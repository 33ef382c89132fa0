"""The mixture of experts compared with masked passes, and the operations that add up its gradients."""

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.model.accumulations import Accumulations
from tests.model.undefined_rows import UndefinedRows, needs_grouped_mm
from ugt_composer.model.moe import MoEFeedForward, balance_loss

PATHS = ["capacity", "dropless", "all experts", pytest.param("grouped", marks=needs_grouped_mm)]


def make_moe(capacity_factor=None, top_k=2):
    torch.manual_seed(0)
    moe = MoEFeedForward(8, 16, num_experts=4, top_k=top_k, capacity_factor=capacity_factor, dropout=0.0)
    for parameter in (moe.up, moe.down, moe.up_bias, moe.down_bias):
        torch.nn.init.normal_(parameter)
    return moe


def masked_passes(moe, x, mask, most=None):
    """Runs every expert over all tokens, weighted by its gate; an expert takes its first `most` tokens."""
    probs = moe.router(x.flatten(0, 1)).softmax(-1).unflatten(0, x.shape[:2])
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


def test_the_modules_that_are_called_do_not_depend_on_the_tokens():
    """DeepSpeed compares them between ranks, whose microbatches may have targets of one token or of several."""
    moe, called = make_moe(capacity_factor=1.0).train(), []
    for name, module in moe.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: called.append(name))

    def called_with(rows: int, tokens: int) -> list[str]:
        called.clear()
        moe(torch.randn(rows, tokens, 8), torch.ones(rows, tokens, dtype=torch.bool), keep_first=True)
        return list(called)

    assert called_with(2, 1) == called_with(2, 3) == called_with(5, 40)


@pytest.mark.parametrize("tokens", [1, 5])
def test_the_first_tokens_are_kept_and_take_no_place_of_others(tokens):
    moe = make_moe(capacity_factor=0.5).train()
    x, mask = torch.randn(6, tokens, 8), torch.ones(6, tokens, dtype=torch.bool)
    out, stats = moe(x, mask, keep_first=True)
    torch.testing.assert_close(out[:, :1], masked_passes(moe, x[:, :1], mask[:, :1]), rtol=1e-4, atol=1e-5)
    most = math.ceil(0.5 * 6 * (tokens - 1) * 2 / 4)
    torch.testing.assert_close(out[:, 1:], masked_passes(moe, x[:, 1:], mask[:, 1:], most), rtol=1e-4, atol=1e-5)
    for ours, wanted in zip(stats, moe(x, mask)[1], strict=True):
        torch.testing.assert_close(ours, wanted)


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


def moe_on_path(path, capacity_factor=0.6):
    moe = make_moe(capacity_factor=capacity_factor if path == "capacity" else None).train()
    moe.all_experts = path == "all experts"
    moe._can_group = lambda tokens: path == "grouped"
    return moe


def some_tokens():
    x, mask = torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)
    mask[1, 2:] = False
    return x, mask


@pytest.mark.parametrize("path", PATHS)
def test_gradients_are_those_of_masked_passes(path):
    moe, (x, mask) = moe_on_path(path), some_tokens()
    weight = torch.randn(3, 5, 8)
    most = math.ceil(0.6 * 15 * 2 / 4) if path == "capacity" else None
    gradients = []
    for forward in (lambda x: moe(x, mask)[0], lambda x: masked_passes(moe, x, mask, most)):
        inputs = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad((forward(inputs) * weight).sum(), (inputs, *moe.parameters())))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_added_by_atomics(path):
    moe, (x, mask) = moe_on_path(path), some_tokens()
    with Accumulations() as accumulations:
        mixed, stats = moe(x.requires_grad_(), mask)
        (mixed.sum() + balance_loss(stats.counts, stats.prob_sums)).backward()
    assert accumulations.found == []


def test_accumulations_are_detected():
    x, index = torch.randn(3, 2, requires_grad=True), torch.tensor([0, 0, 1])
    with Accumulations() as accumulations:
        (x[index].sum() + x.index_select(0, index).sum() + x[index[1:]].sum()).backward()
    assert len(accumulations.found) == 2


@pytest.mark.parametrize("path", PATHS)
def test_flattened_experts_are_the_same_experts(path):
    moe, (x, mask) = moe_on_path(path), some_tokens()
    expected = moe(x, mask)[0]
    for name in ("up", "down"):
        setattr(moe, name, torch.nn.Parameter(moe.get_parameter(name).detach().flatten(0, 1)))
    torch.testing.assert_close(moe(x, mask)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("way", ["autocast", "bfloat16 weights"])
def test_bfloat16_is_close_to_float32(path, way):
    moe, (x, mask) = moe_on_path(path), some_tokens()
    x = x.bfloat16().float()  # near ties decide the same way
    moe.router.weight.data = moe.router.weight.data.bfloat16().float()
    moe(x.requires_grad_(), mask)[0].square().sum().backward()
    twin, y = moe_on_path(path), x.detach().requires_grad_()
    twin.load_state_dict(moe.state_dict())
    if way == "bfloat16 weights":
        twin, y = twin.bfloat16(), x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        mixed, stats = twin(y, mask)
    mixed.float().square().sum().backward()
    assert y.grad.dtype == y.dtype
    assert stats.prob_sums.dtype == torch.float32
    for (name, other), parameter in zip(twin.named_parameters(), moe.parameters(), strict=True):
        assert (other.grad.float() - parameter.grad).norm() < 0.03 * parameter.grad.norm() + 1e-6, name
    assert (y.grad.float() - x.grad).norm() < 0.03 * x.grad.norm()


def test_an_empty_slot_cannot_overflow_its_expert():
    moe, (x, mask) = moe_on_path("capacity", 4.0), some_tokens()
    moe.router.weight.data[1], moe.router.weight.data[0] = -3.0, 3.0
    x = x.abs().requires_grad_()  # expert 1 is the least probable one of all tokens
    moe.up.data[1] = 3e38
    mixed, stats = moe(x, mask)
    mixed.sum().backward()
    assert stats.counts[1] == 0
    assert all(parameter.grad.isfinite().all() for parameter in (*moe.parameters(), x))


def test_the_router_is_float32_whatever_its_weights_are():
    moe, (x, _) = moe_on_path("dropless"), some_tokens()
    logits = moe.router.bfloat16()(x.flatten(0, 1).bfloat16())
    expected = x.flatten(0, 1).bfloat16().double() @ moe.router.weight.double().t()
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-6)


def compare_grouped_with_dropless(moe, x, mask, dtype):
    """Outputs, statistics, and the gradients of x and all parameters, under autocast if dtype is bfloat16."""
    weight, results = torch.randn(x.shape), {}
    for path in ("dropless", "grouped"):
        moe._can_group = lambda tokens, path=path: path == "grouped"
        inputs = x.clone().requires_grad_()
        with UndefinedRows() as undefined, torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            mixed, stats = moe(inputs, mask)
            loss = (mixed.float() * weight).sum() + balance_loss(stats.counts, stats.prob_sums)
            gradients = torch.autograd.grad(loss, (inputs, *moe.parameters()))
        assert undefined.forward == undefined.backward == (2 if path == "grouped" else 0)
        results[path] = (mixed, *stats, *gradients)
    for found, expected in zip(results["grouped"], results["dropless"], strict=True):
        assert found.dtype == expected.dtype
        assert found.isfinite().all()
        close = 2e-2 * expected.float().norm() if dtype == torch.bfloat16 else 1e-5 * expected.norm() + 1e-6
        assert (found.float() - expected.float()).norm() <= close


@needs_grouped_mm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_grouped_products_give_what_dropless_gives(top_k, flat, dtype):
    moe = make_moe(top_k=top_k).train()
    if flat:
        for name in ("up", "down"):
            setattr(moe, name, torch.nn.Parameter(moe.get_parameter(name).detach().flatten(0, 1)))
    x, mask = some_tokens()
    compare_grouped_with_dropless(moe, x, mask, dtype)


@needs_grouped_mm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("valid", [0, 1, 2])
@pytest.mark.parametrize("tokens", [1, 5])
def test_grouped_products_give_what_dropless_gives_with_empty_experts(tokens, valid, dtype):
    x, mask = torch.randn(1, tokens, 8), (torch.arange(tokens) < valid)[None]
    compare_grouped_with_dropless(make_moe(top_k=1).train(), x, mask, dtype)


@needs_grouped_mm
@pytest.mark.parametrize("expert", [0, 2, 3])
def test_grouped_products_with_all_tokens_at_one_expert(expert):
    moe, (x, mask) = make_moe(top_k=1).train(), some_tokens()
    with torch.no_grad():
        moe.router.weight.fill_(-1).index_fill_(0, torch.tensor(expert), 1)
    compare_grouped_with_dropless(moe, x.abs(), mask, torch.bfloat16)


def test_a_batch_without_rows():
    moe = moe_on_path("dropless")
    del moe._can_group
    mixed, stats = moe(torch.zeros(0, 3, 8), torch.zeros(0, 3, dtype=torch.bool))
    assert mixed.shape == (0, 3, 8)
    assert stats.counts.tolist() == [0, 0, 0, 0]


@needs_grouped_mm
@pytest.mark.parametrize("path", ["dropless", pytest.param("grouped", marks=needs_grouped_mm)])
def test_only_dropless_reads_a_value(path):
    reads = pytest.raises(DataDependentOutputException) if path == "dropless" else nullcontext()
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16):
        moe, (x, mask) = moe_on_path(path), some_tokens()
        with reads:
            moe(x.requires_grad_(), mask)[0].square().sum().backward()
            assert moe.up.grad.shape == moe.up.shape


@needs_grouped_mm
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_grouped_products_are_one_graph(backend):
    torch._dynamo.reset()
    moe, (x, mask) = moe_on_path("grouped"), some_tokens()
    results = []
    for forward in (moe, torch.compile(moe, backend=backend, fullgraph=True)):
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            mixed, _ = forward(inputs, mask)
        results.append((mixed, *torch.autograd.grad(mixed.square().sum(), (inputs, *moe.parameters()))))
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() <= 1e-2 * expected.norm()
