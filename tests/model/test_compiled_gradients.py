"""Compiled code has the same gradients as eager code."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from tests.conftest import TINY, make_batch
from ugt_composer.losses.unified import UnifiedLoss
from ugt_composer.model.build import build_model


def gradients(side: str | None, capacity: float | None, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    torch._dynamo.reset()
    model = build_model(replace(TINY, expert_capacity_factor=capacity), 1).train()
    for layer in () if side is None else getattr(model, side).layers:
        layer.compile(backend="aot_eager")
    batch = make_batch(rows=6, history=9, target=4, seed=2)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        UnifiedLoss(repr_dim=TINY.d_model)(model(batch), batch)["total_loss"].backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize(("side", "capacity"), [("encoder", None), ("decoder", 1.25), ("decoder", None)])
def test_compiled_layers_have_the_gradients_of_eager_ones(side, capacity, dtype, bound):
    wanted = gradients(None, capacity, dtype)
    counters.clear()
    found = gradients(side, capacity, dtype)
    assert counters["stats"]["unique_graphs"] > 0  # something was compiled
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= bound * gradient.norm() + 1e-7, name
