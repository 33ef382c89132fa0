"""The kernels of pointwise attention under Triton's interpreter, compared with loops over rows and heads in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.attention_twin import both, example, loops, run
from tests.kernels.interpreted import interpreted
from ugt_composer.kernels import pointwise_attention as module
from ugt_composer.kernels.pointwise_attention import pointwise_attention

pytestmark = interpreted


@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(
    ("lengths", "n_heads", "head"),
    [
        ((600,), 1, 16),
        ((3, 0, 70, 1), 2, 32),
        ((200,), 1, 16),
        ((0,), 2, 8),
        ((129, 128, 127), 1, 64),
        ((33, 65), 2, 40),
        ((40,), 1, 128),
    ],
)
def test_values_and_gradients_equal_loops(lengths, n_heads, head, holes, activation):
    found, wanted = both(lengths, n_heads, head, activation, holes)
    for ours, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-6)


@settings(max_examples=10)
@given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=4),
    n_heads=st.integers(1, 3),
    head=st.integers(1, 40),
    holes=st.booleans(),
    activation=st.sampled_from(["silu", "relu"]),
    longer=st.integers(0, 200),
)
def test_rows_of_any_lengths_equal_loops(lengths, n_heads, head, holes, activation, longer):
    found, wanted = both(lengths, n_heads, head, activation, holes, max_length=max(lengths) + longer)
    for ours, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", [32, 64, 128])
def test_float16_stays_near_float64(head):
    # The interpreter cannot multiply bfloat16; tests/gpu does.
    found, wanted = both((190, 17), 2, head, dtype=torch.float16, holes=True)
    assert [tensor.dtype for tensor in found] == [torch.float16] * 2
    for ours, exact in zip(found, wanted, strict=True):
        assert (ours.double() - exact).norm() < 2e-3 * exact.norm()


def test_rows_without_a_valid_token_give_zeros():
    projected, offsets, mask = example((5, 7), 2, 8, holes=False)
    mask[:5] = False
    out, grad = run(lambda qkv: pointwise_attention(qkv, offsets, mask, 7, 2, "silu"), projected)
    assert (out[:5] == 0).all()
    assert (grad[:5] == 0).all()
    assert (out[5:] != 0).all()


def test_padding_never_matters():
    projected, offsets, mask = example((80, 80), 2, 16, holes=False)
    mask[30:80] = False
    spoiled = projected.detach().clone()
    spoiled[30:80] = float("nan")
    found = [
        run(lambda qkv: pointwise_attention(qkv, offsets, mask, 80, 2, "silu"), tokens.requires_grad_())
        for tokens in (projected, spoiled)
    ]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def dropped(length, n_heads, rows, seed, p):
    """The factors of the weights, read off the kernel: with one-hot values the outputs are the weights."""
    head = length
    lengths = (length,) * rows
    offsets = F.pad(torch.tensor(lengths).cumsum(0), (1, 0))
    q = k = torch.ones(rows * length, n_heads * head) / math.sqrt(math.sqrt(head))
    v = torch.eye(length).repeat(rows, n_heads)
    weights = module._attention(torch.cat((q, k, v), 1), offsets, None, seed, length, n_heads, "relu", p)
    per_head = weights.view(rows, length, n_heads, head).transpose(1, 2)
    return per_head * length


def test_dropout_on_weights_has_its_rate_and_the_same_gradients_as_loops():
    p, rows, n_heads, length = 0.25, 2, 2, 64
    seed = torch.tensor([12345])
    factors = dropped(length, n_heads, rows, seed, p)
    kept = factors[factors > 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)))
    share = (factors == 0).double().mean().item()
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / factors.numel())
    assert not torch.equal(factors[0], factors[1])
    assert not torch.equal(factors[0, 0], factors[0, 1])

    lengths = (length,) * rows
    projected, offsets, mask = example(lengths, n_heads, 16, holes=False)
    found = run(lambda qkv: module._attention(qkv, offsets, None, seed, length, n_heads, "silu", p), projected)
    exact = projected.detach().double().requires_grad_()
    wanted = run(lambda qkv: loops(qkv, lengths, mask, n_heads, "silu", factors.double()), exact)
    for ours, twin in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), twin, rtol=1e-5, atol=1e-6)


def test_each_weight_of_a_long_row_draws_its_own_number():
    length = 600
    qkv = torch.cat((torch.full((length, 32), 16**-0.25), torch.zeros(length, 16)), dim=1)
    qkv[0, 32], qkv[512, 33] = 1, 1  # the outputs are the weights of keys 0 and 512
    offsets = torch.tensor([0, length])
    weights = module._attention(qkv, offsets, None, torch.tensor([7]), length, 1, "relu", 0.5)[:, :2]
    kept = weights > 0
    assert 0.4 < kept.double().mean() < 0.6
    assert not torch.equal(kept[:-1, 1], kept[1:, 0])


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_float16_keeps_small_gradients_as_well_as_the_plain_form_does(scale):
    length, head = 512, 32
    qkv = torch.randn(length, 3 * head, generator=torch.Generator().manual_seed(0)).half()
    grad = scale * torch.randn(length, head, generator=torch.Generator().manual_seed(1))
    offsets = torch.tensor([0, length])
    forms = {
        "kernels": lambda x: pointwise_attention(x, offsets, None, length, 1, "silu"),
        "plain": lambda x: plain(x, length),
        "exact": lambda x: plain(x, length),
    }
    found = {}
    for name, form in forms.items():
        dtype = torch.float64 if name == "exact" else torch.float16
        x = qkv.to(dtype, copy=True).requires_grad_()
        form(x).backward(grad.half().to(dtype))
        found[name] = x.grad.double().chunk(3, dim=1)
    for ours, usual, exact in zip(found["kernels"], found["plain"], found["exact"], strict=True):
        assert (ours - exact).norm() < 1.2 * (usual - exact).norm() + 5e-4 * exact.norm()


def plain(qkv, length):
    q, k, v = qkv.chunk(3, dim=1)
    return F.silu(q / math.sqrt(q.shape[1]) @ k.T) @ (v / length)


def test_dropout_draws_from_pytorchs_generator():
    projected, offsets, _ = example((40,), 1, 16, holes=False)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(pointwise_attention(projected[:, :48], offsets, None, 40, 1, "silu", dropout=0.5))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_the_operators_are_what_they_promise_to_the_compiler():
    projected, offsets, mask = example((9, 4), 2, 8, holes=True)
    qkv = projected[:, :48].detach().contiguous().requires_grad_()
    rest = (offsets, mask, None, 9, 2, "silu", 0.0)
    torch.library.opcheck(module._attention, (qkv, *rest))
    torch.library.opcheck(module._gradients, (torch.randn(13, 16), qkv.detach(), *rest))


def test_nothing_but_the_inputs_is_kept_for_the_backward_pass():
    projected, offsets, mask = example((9, 4), 2, 8, holes=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda x: x):
        pointwise_attention(projected[:, :48], offsets, mask, 9, 2, "silu")
    assert sorted(map(tuple, kept)) == [(3,), (13,), (13, 48)]
