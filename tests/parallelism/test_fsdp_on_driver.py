"""FSDP2's own casts and CUDA's autocast together; needs a CUDA device or the driver that stands for one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DRIVER = ROOT.parent / "shared/gpu/nullgpu/run.sh"


@pytest.mark.skipif(not DRIVER.exists(), reason="the driver that stands for a GPU is not here")
@pytest.mark.parametrize(("dtype", "where"), [("bfloat16", "device"), ("float16", "device"), ("bfloat16", "offload")])
def test_weights_are_half_and_the_residual_stream_is_not(dtype, where):
    words = [DRIVER, sys.executable, sys.executable, ROOT / "tests/parallelism/fsdp_on_driver.py", dtype, where, 1.25]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([*map(str, words)], env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["weights"] == [f"torch.{dtype}"]
    assert found["residual"] == found["input"] == ["torch.float32"]
    assert found["gradients"] == ["torch.float32 " + ("cpu" if where == "offload" else "cuda")]
    assert len(found["references"]) == 1
