"""FSDP2's casts combined with CUDA's autocast."""

import json

import pytest

from tests.rehearsal.driver import run


@pytest.mark.parametrize(
    ("dtype", "where"),
    [
        ("bfloat16", "device"),
        pytest.param("float16", "device", marks=pytest.mark.slow),
        pytest.param("bfloat16", "offload", marks=pytest.mark.slow),
    ],
)
def test_weights_are_half_and_the_residual_stream_is_not(dtype, where):
    found = json.loads(run("fsdp_step.py", dtype, where, 1.25))
    assert found["weights"] == [f"torch.{dtype}"]
    assert found["residual"] == found["input"] == ["torch.float32"]
    assert found["gradients"] == ["torch.float32 " + ("cpu" if where == "offload" else "cuda")]
    assert len(found["references"]) == 1
