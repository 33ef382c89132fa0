"""Products of groups compared with a loop over the groups, and where they are used."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.model.accumulations import Accumulations
from tests.model.undefined_rows import UndefinedRows, needs_grouped_mm
from ugt_composer import kernels
from ugt_composer.model import grouped_product
from ugt_composer.model.grouped_product import grouped_linear, runs_without_waiting

E, K, F = 3, 8, 16
SIZES = [(2, 3, 4), (0, 3, 0), (5, 0, 0), (0, 0, 1), (0, 0, 0)]


@needs_grouped_mm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rest", [0, 1, 4])
@pytest.mark.parametrize("sizes", SIZES)
def test_grouped_linear_equals_a_product_per_group(sizes, rest, dtype):
    rows = sum(sizes) + rest
    if rows == 0:
        pytest.skip("no rows: not supported, see runs_without_waiting")
    x = torch.randn(rows, K, dtype=dtype).requires_grad_()
    weight, bias = torch.randn(E, K, F, requires_grad=True), torch.randn(E, F, requires_grad=True)
    group = torch.arange(E + 1).repeat_interleave(torch.tensor([*sizes, rest]))
    ends, target = torch.tensor(sizes).cumsum(0).int(), torch.randn(sum(sizes), F)
    inputs = (x, weight, bias)
    with UndefinedRows():
        found = grouped_linear(x, weight, bias, group, ends)[: sum(sizes)]
        gradients = torch.autograd.grad((found * target).sum(), inputs)
    assert found.dtype == dtype
    pieces = x[: sum(sizes)].float().split(sizes)
    wanted = torch.cat([p @ w + b for p, w, b in zip(pieces, weight.to(dtype).float(), bias, strict=True)])
    wanted_gradients = torch.autograd.grad((wanted * target).sum(), inputs)
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    pairs = list(zip((found, *gradients), (wanted, *wanted_gradients), strict=True))
    assert [ours.dtype for ours, _ in pairs] == [dtype, dtype, torch.float32, torch.float32]
    pairs[1] = tuple(gradient[: sum(sizes)] for gradient in pairs[1])  # the other rows are undefined
    for ours, theirs in pairs:
        assert (ours.float() - theirs.float()).norm() <= bound * theirs.float().norm()


@needs_grouped_mm
def test_the_ops_add_nothing_by_atomics():
    x, weight, bias, group, ends = arguments()
    with Accumulations() as accumulations:
        product = grouped_product._grouped_linear._init_fn(x, weight, bias, group, ends)
        grouped_product._grouped_gradients._init_fn(product, x, weight, ends)
    assert accumulations.found == []


def arguments() -> tuple[torch.Tensor, ...]:
    sizes = torch.tensor([2, 0, 3])
    group, ends = torch.arange(E).repeat_interleave(sizes), sizes.cumsum(0).int()
    return torch.randn(5, K), torch.randn(E, K, F), torch.randn(E, F), group, ends


@needs_grouped_mm
def test_the_ops_are_registered_completely():
    x, weight, bias, group, ends = arguments()
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    torch.library.opcheck(grouped_product._grouped_linear, (*inputs, group, ends))
    gradient = torch.randn(5, F)
    torch.library.opcheck(grouped_product._grouped_gradients, (gradient, x.detach(), weight.detach(), ends))


@needs_grouped_mm
def test_operands_stored_in_any_order_are_multiplied():
    x, weight, bias, group, ends = arguments()
    expected = grouped_linear(x, weight, bias, group, ends)
    strided = weight.transpose(0, 2).contiguous().transpose(0, 2)
    columns = x.t().contiguous().t()
    torch.testing.assert_close(grouped_linear(columns, strided, bias, group, ends), expected)
    results = [
        grouped_product._grouped_gradients(gradient, columns, strided, ends)
        for gradient in (expected, expected.t().contiguous().t())
    ]
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)
        assert found.is_contiguous()  # as the op's fake results are


@needs_grouped_mm
def test_a_single_row_may_have_any_stride():
    x, weight, bias, ends = torch.randn(1, K), torch.randn(E, K, F), torch.zeros(E, F), torch.tensor([0, 1, 1])
    strange = x.as_strided((1, K), (1, 1))
    product = grouped_linear(strange, weight, bias, torch.tensor([1]), ends.int())
    torch.testing.assert_close(product, x @ weight[1])


@needs_grouped_mm
def test_weights_at_any_address_are_multiplied():
    storage = torch.randn(1 + E * K * F).bfloat16()
    weight = storage[1:].view(E, K, F)
    assert weight.data_ptr() % grouped_product.ALIGNMENT
    aligned = grouped_product._aligned(weight)
    assert aligned.data_ptr() % grouped_product.ALIGNMENT == 0
    assert torch.equal(aligned, weight)
    assert grouped_product._aligned(aligned).data_ptr() == aligned.data_ptr()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "grouped_mm"),
        ({"rows": 2**24 - 1}, "grouped_mm"),
        ({"groups": 1023}, "grouped_mm"),
        ({"enabled": False}, "grouped_mm"),
        ({"version": False}, "kernels"),
        ({"dtype": torch.float16}, "kernels"),
        ({"capability": (8, 0)}, "kernels"),
        ({"capability": (10, 0)}, "kernels"),
        ({"capability": (12, 0)}, "kernels"),
        ({"rows": 0}, "kernels"),
        ({"rows": 2**24}, "kernels"),
        ({"groups": 1024}, "kernels"),
        ({"widths": (64, 100)}, "kernels"),
        ({"widths": (60, 128)}, "kernels"),
        ({"dtype": torch.float32, "tf32": True}, "kernels"),
        ({"dtype": torch.float32}, None),
        ({"dtype": torch.float64, "tf32": True}, None),
        ({"groups": kernels.MAX_GROUPS + 1}, None),
        ({"capability": (7, 5)}, None),
        ({"enabled": False, "version": False}, None),
        ({"enabled": False, "dtype": torch.float16}, None),
        ({"enabled": False, "hip": "6.4"}, None),
        ({"device": torch.device("cpu")}, None),
        ({"device": torch.device("meta")}, None),
    ],
    ids=str,
)
def test_what_computes_grouped_products_without_waiting(monkeypatch, change, expected):
    known: dict[str, Any] = {
        "device": torch.device("cuda", 0),
        "dtype": torch.bfloat16,
        "capability": (9, 0),
        "version": True,
    }
    known |= {"enabled": True, "tf32": False, "hip": None, "rows": 10, "groups": 8, "widths": (64, 128)} | change
    monkeypatch.setattr(grouped_product, "IS_AVAILABLE", known["version"])
    monkeypatch.setattr(grouped_product, "tf32_is_allowed", lambda: known["tf32"])
    monkeypatch.setattr(kernels, "_ARE_ENABLED", known["enabled"])
    monkeypatch.setattr(torch.version, "hip", known["hip"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: known["capability"])
    place = {"device": known["device"], "is_cuda": known["device"].type == "cuda"}
    sizes = (known["groups"], *known["widths"])
    tokens = SimpleNamespace(**place, dtype=torch.float32)  # as under autocast
    assert runs_without_waiting(tokens, known["dtype"], known["rows"], *sizes) is (expected is not None)
    if expected is not None:
        x = SimpleNamespace(**place, dtype=known["dtype"], shape=(known["rows"], known["widths"][0]))
        assert grouped_product._has_kernels(x, SimpleNamespace(shape=sizes)) is (expected == "kernels")
