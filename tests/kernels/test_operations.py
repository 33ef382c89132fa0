"""Operations of the package's operators, as FlopCounterMode counts them, compared with the plain products'."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.interpreted import interpreted
from tests.model.undefined_rows import needs_grouped_mm
from ugt_composer import kernels
from ugt_composer.model import grouped_product
from ugt_composer.model.pointwise_product import pointwise_product

ROWS, HEADS, LENGTH, HEAD = 2, 3, 8, 16
WIDTH = HEADS * HEAD


def operations(run) -> tuple[int, int]:
    """Of the forward and of the backward pass."""
    with FlopCounterMode(display=False) as counter:
        out = run()
        forward = counter.get_total_flops()
        out.sum().backward()
    return forward, counter.get_total_flops() - forward


def vectors(*shape):
    return torch.randn(*shape, requires_grad=True)


def plain():
    q, k, v = (vectors(ROWS, HEADS, LENGTH, HEAD) for _ in range(3))
    forward, backward = operations(lambda: torch.relu(q @ k.transpose(2, 3)) @ v)
    assert (forward, backward) == (4 * ROWS * LENGTH**2 * WIDTH, 8 * ROWS * LENGTH**2 * WIDTH)
    return forward


def test_pieces_recompute_one_product_in_the_backward_pass():
    forward = plain()
    inputs = [vectors(ROWS, HEADS, LENGTH, HEAD) for _ in range(3)]
    assert operations(lambda: pointwise_product(*inputs, activation="relu")) == (forward, forward * 5 // 2)


@interpreted
def test_the_kernels_of_attention_recompute_three_products_in_the_backward_pass():
    from ugt_composer.kernels.pointwise_attention import pointwise_attention

    forward, qkv = plain(), vectors(ROWS * LENGTH, 3 * WIDTH)
    offsets = torch.arange(0, (ROWS + 1) * LENGTH, LENGTH)
    found = operations(lambda: pointwise_attention(qkv, offsets, None, LENGTH, HEADS, "relu"))
    assert found == (forward, forward * 7 // 2)


def test_a_product_without_tf32_is_a_product():
    a, b = vectors(3, 4), vectors(4, 5)
    assert operations(lambda: torch.ops.ugt.matmul_without_tf32(a, b)) == operations(lambda: a @ b) == (120, 240)


@pytest.mark.parametrize(
    "way", [pytest.param("grouped_mm", marks=needs_grouped_mm), pytest.param("kernels", marks=interpreted)]
)
def test_a_grouped_product_has_one_matrix_per_row(monkeypatch, way):
    monkeypatch.setattr(kernels, "are_usable", lambda x: way == "kernels")
    x, weight, bias = vectors(6, 8), vectors(3, 8, 16), vectors(3, 16)
    group, ends = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([2, 3, 6], dtype=torch.int32)
    found = operations(lambda: grouped_product.grouped_linear(x, weight, bias, group, ends))
    assert found == (2 * 6 * 8 * 16, 4 * 6 * 8 * 16)
