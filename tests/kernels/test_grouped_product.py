"""The kernels of grouped products under Triton's interpreter, compared with loops over the groups in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.interpreted import interpreted
from tests.model.undefined_rows import UndefinedRows
from ugt_composer import kernels
from ugt_composer.kernels.grouped_product import HALF
from ugt_composer.model import grouped_product
from ugt_composer.model.grouped_product import grouped_linear
from ugt_composer.model.moe import MoEFeedForward

pytestmark = interpreted
TILE = HALF.rows


@pytest.fixture(autouse=True, scope="module")
def kernels_are_usable():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "are_usable", lambda x: x.dtype in kernels.DTYPES)
        yield


def loops(inputs, sizes):
    """(Σ sizes, F)."""
    x, weight, bias = inputs
    pieces = x[: sum(sizes)].split(sizes)
    return torch.cat([piece @ w + b for piece, w, b in zip(pieces, weight, bias, strict=True)])


def both(sizes, rest, width, columns, dtype=torch.float32):
    """Outputs and gradients of x, weight and bias: of the kernels, and in float64 of the loops. Rows after the last
    group are NaN, in the inputs, the outputs and the gradients."""
    generator = torch.Generator().manual_seed(sum(sizes) + width)
    count, rows = sum(sizes), sum(sizes) + rest
    shapes = ((rows, width), (len(sizes), width, columns), (len(sizes), columns), (rows, columns))
    x, weight, bias, grad = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    x[count:] = grad[count:] = torch.nan
    group = torch.arange(len(sizes) + 1).repeat_interleave(torch.tensor([*sizes, rest]))
    inputs = tuple(tensor.requires_grad_() for tensor in (x, weight, bias))
    with UndefinedRows():
        found = grouped_linear(x, weight, bias, group, torch.tensor(sizes).cumsum(0).int())
        gradients = torch.autograd.grad(found, inputs, grad)
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in inputs)
    wanted = loops(exact, sizes)
    wanted_gradients = torch.autograd.grad(wanted, exact, grad[:count].double())
    return [
        (one[:count], other[:count]) if len(one) == rows else (one, other)
        for one, other in zip((found.detach(), *gradients), (wanted.detach(), *wanted_gradients), strict=True)
    ]


@pytest.mark.parametrize(
    ("sizes", "rest", "width", "columns"),
    [
        ((2, 3, 4), 0, 16, 16),
        ((5, 0, 0, 1), 7, 48, 32),
        ((0, 0, 3, 0, 0), 2, 100, 24),
        ((0, 0), 3, 16, 16),
        ((0, 0), 0, 16, 16),
        ((1,), 0, 16, 136),
        ((1,) * 5, 0, 17, 3),
        ((TILE + 1, 0, TILE, TILE - 1, 1), TILE, 130, 20),
        ((2 * TILE + 1, TILE + 1), 0, 16, 150),
    ],
)
def test_values_and_gradients_equal_loops(sizes, rest, width, columns):
    for ours, exact in both(sizes, rest, width, columns):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4)


@settings(max_examples=10)
@given(
    sizes=st.lists(st.integers(0, 150), min_size=1, max_size=5),
    rest=st.integers(0, 140),
    width=st.integers(1, 70),
    columns=st.integers(1, 140),
)
def test_groups_of_any_sizes_equal_loops(sizes, rest, width, columns):
    for ours, exact in both(sizes, rest, width, columns):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4)


def test_float16_stays_near_float64():
    # The interpreter cannot multiply bfloat16; tests/gpu does.
    for ours, exact in both((TILE + 2, 0, 60), 5, 96, 144, torch.float16):
        assert ours.dtype == torch.float16
        assert (ours.double() - exact).norm() < 1e-3 * exact.norm()


def test_a_group_without_rows_gets_a_gradient_of_exactly_zero():
    (*_, (weight, _), (bias, _)) = both((3, 0, 2), 4, 16, 16)
    assert weight.flatten(1).any(1).tolist() == bias.any(1).tolist() == [True, False, True]


def test_the_same_inputs_give_the_same_bits():
    first, second = (both((TILE + 1, 0, 70), 3, 40, 50) for _ in range(2))
    assert all(torch.equal(one, other) for (one, _), (other, _) in zip(first, second, strict=True))


def test_operands_of_any_strides_and_addresses_are_multiplied():
    x, weight, bias = torch.randn(5, 8), torch.randn(3, 8, 16), torch.randn(3, 16)
    group, ends = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([2, 3, 5], dtype=torch.int32)
    wanted = grouped_linear(x, weight, bias, group, ends)
    columns, strided = x.t().contiguous().t(), weight.transpose(0, 2).contiguous().transpose(0, 2)
    shifted = torch.cat((bias.new_zeros(1), bias.flatten()))[1:].view(3, 16)
    found = grouped_linear(columns, strided, shifted, group, ends.repeat_interleave(2)[::2])
    assert torch.equal(found, wanted)
    results = [
        grouped_product._grouped_gradients(grad, *operands, ends)
        for grad, *operands in ((wanted, x, weight), (wanted.t().contiguous().t(), columns, strided))
    ]
    assert all(map(torch.equal, *results))


def test_the_operators_pass_the_checks_of_pytorch():
    x, weight, bias, group = torch.randn(4, 8), torch.randn(3, 8, 16), torch.randn(3, 16), torch.tensor([0, 0, 2, 2])
    ends = torch.tensor([2, 2, 4], dtype=torch.int32)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    torch.library.opcheck(grouped_product._grouped_linear, (*inputs, group, ends))
    torch.library.opcheck(grouped_product._grouped_gradients, (torch.randn(4, 16), x.detach(), weight.detach(), ends))


def experts(top_k=2):
    torch.manual_seed(0)
    moe = MoEFeedForward(24, 40, num_experts=5, top_k=top_k, capacity_factor=None, dropout=0.0)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    mask = torch.rand(6, 9) < 0.7
    return moe, torch.randn(6, 9, 24).half().float(), mask  # float16: near ties of the router are decided the same way


def one_pass(moe, x, mask, dtype):
    """Outputs, statistics, and the gradients of x and all parameters; and how often products were grouped."""
    inputs = x.clone().requires_grad_()
    with UndefinedRows() as grouped, torch.autocast("cpu", torch.float16, enabled=dtype == torch.float16):
        mixed, stats = moe(inputs, mask)
        loss = mixed.float().square().sum() + stats.prob_sums.square().sum()
        return (mixed.detach(), *stats, *torch.autograd.grad(loss, (inputs, *moe.parameters()))), grouped


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_experts_give_what_they_give_without_kernels(monkeypatch, dtype, top_k):
    moe, x, mask = experts(top_k)
    monkeypatch.setattr(grouped_product, "tf32_is_allowed", lambda: True)
    found, grouped = one_pass(moe, x, mask, dtype)
    assert grouped.forward == grouped.backward == 2
    monkeypatch.setattr(kernels, "are_usable", lambda x: False)
    wanted, grouped = one_pass(moe, x, mask, dtype)
    assert grouped.forward == grouped.backward == 0
    bound = 5e-3 if dtype == torch.float16 else 1e-5
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours.float() - theirs.float()).norm() <= bound * theirs.float().norm() + 1e-6


@pytest.mark.parametrize("shape", [(0, 3), (4, 2)])
def test_the_experts_of_no_token(shape):
    moe, _, _ = experts()
    outputs, grouped = one_pass(moe, torch.zeros(*shape, 24), torch.zeros(shape, dtype=torch.bool), torch.float16)
    assert grouped.forward == grouped.backward == 2
    assert not any(output.any() for output in outputs)


def test_compiled_the_experts_are_one_graph():
    torch._dynamo.reset()
    moe, x, mask = experts()
    results = []
    for forward in (moe, torch.compile(moe, backend="aot_eager", fullgraph=True)):
        with torch.autocast("cpu", torch.float16):
            mixed, _ = forward(x, mask)
        results.append((mixed, *torch.autograd.grad(mixed.float().square().sum(), tuple(moe.parameters()))))
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() <= 1e-3 * expected.norm()
