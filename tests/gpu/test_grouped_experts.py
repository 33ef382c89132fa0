"""The experts by grouped products on a card: where it leaves results undefined, what it waits for, and which bits."""

import pytest
import torch

from tests.model.undefined_rows import UndefinedRows
from ugt_composer import kernels
from ugt_composer.float32_product import allow_tf32
from ugt_composer.model import grouped_product
from ugt_composer.model.grouped_product import grouped_linear, runs_without_waiting
from ugt_composer.model.moe import MoEFeedForward

E, D, F = 8, 128, 256
# What computes the products, and the precision → the products' dtype and the largest relative error.
WAYS = {
    "grouped_mm-bf16": (torch.bfloat16, 2e-2),
    "kernels-bf16": (torch.bfloat16, 2e-2),
    "kernels-fp16": (torch.float16, 4e-3),
    "kernels-tf32": (torch.float32, 4e-3),
    "kernels-fp32": (torch.float32, 1e-4),
}


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


@pytest.fixture(params=WAYS)
def way(request, gpu, monkeypatch) -> str:
    """What computes the grouped products, and in which precision."""
    if request.param.startswith("grouped_mm"):
        if not grouped_product.IS_AVAILABLE:
            pytest.skip("this PyTorch has no tested grouped_mm")
        monkeypatch.setattr(kernels, "are_usable", lambda x: False)
    else:
        if not kernels.are_usable(torch.empty(1, device=gpu)):
            pytest.skip("needs a GPU of compute capability 8.0 or above, and Triton")
        monkeypatch.setattr(grouped_product, "IS_AVAILABLE", False)
    return request.param


@pytest.fixture
def kernels_way(way) -> str:
    if way.startswith("grouped_mm"):
        pytest.skip("about the kernels")
    return way


@pytest.mark.parametrize(
    "name", ["some padding", "no padding", "one token", "two valid tokens", "only padding", "many tokens"]
)
@pytest.mark.parametrize("top_k", [1, 2, E])
def test_grouped_products_are_near_float32(gpu, way, name, top_k):
    dtype, bound = WAYS[way]
    torch.manual_seed(0)
    moe = MoEFeedForward(D, F, num_experts=E, top_k=top_k, capacity_factor=None, dropout=0.0)
    for parameter in moe.parameters():
        parameter.data = (torch.randn_like(parameter) * 0.1).bfloat16().float()
    moe, (x, mask) = moe.to(gpu).train(), (tensor.to(gpu) for tensor in case(name))
    moe._is_cheaper_than_waiting = lambda tokens: False
    moe._can_group = lambda tokens: False
    wanted = one_pass(moe, x, mask)
    moe._can_group = lambda tokens: True
    try:
        allow_tf32(way == "kernels-tf32")
        with torch.autocast(gpu.type, dtype, enabled=dtype != torch.float32):
            with UndefinedRows() as undefined:
                found = one_pass(moe, x, mask)
            assert undefined.forward == undefined.backward == 2
            sizes = mask.numel() * top_k, E, D, F
            if way.startswith("kernels") or runs_without_waiting(x, dtype, *sizes):
                torch.cuda.set_sync_debug_mode("error")
            again = one_pass(moe, x, mask)
    finally:
        allow_tf32(False)
        if gpu.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert all(map(torch.equal, again, found))
    counts = wanted[1]
    assert torch.equal(found[1], counts)
    # The router's gradient is a difference of experts: of few tokens mostly rounding, with a single expert only that.
    compared = len(found) if top_k > 1 and mask.sum() > 2 else len(found) - 1
    for ours, theirs in zip(found[:compared], wanted[:compared], strict=True):
        assert (ours - theirs).norm() <= bound * theirs.norm()
    for gradient in found[3:7]:  # up, up_bias, down, down_bias
        assert not gradient[counts == 0].any()


def test_kernels_group_the_experts_where_tensor_cores_compute_them(gpu, kernels_way):
    moe, tokens = MoEFeedForward(D, F, E, 2, None, 0.0), torch.empty(5, D, device=gpu)
    dtype, _ = WAYS[kernels_way]
    try:
        allow_tf32(kernels_way == "kernels-tf32")
        with torch.autocast(gpu.type, dtype, enabled=dtype != torch.float32):
            assert moe._can_group(tokens) == (kernels_way != "kernels-fp32")
    finally:
        allow_tf32(False)


def test_a_row_has_the_same_bits_whatever_other_rows_there_are(gpu, kernels_way):
    dtype, _ = WAYS[kernels_way]
    sizes = torch.tensor([300, 0, 1, 129])
    x, weight, bias = torch.randn(430, D), torch.randn(4, D, F), torch.randn(4, F)
    x, weight, bias = (tensor.to(gpu, dtype) for tensor in (x, weight, bias))
    group = torch.arange(4).repeat_interleave(sizes)
    few = torch.tensor([0, 7, 200, 300, 301, 429])

    def products(rows: torch.Tensor) -> torch.Tensor:
        ends = torch.bincount(group[rows], minlength=4).cumsum(0).int()
        return grouped_linear(x[rows], weight, bias, group[rows].to(gpu), ends.to(gpu))

    assert torch.equal(products(few), products(torch.arange(430))[few])
