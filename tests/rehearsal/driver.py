"""The driver that stands for a GPU: its kernels compute nothing, PyTorch's allocator is the real one."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = Path(os.environ.get("NULLGPU", ROOT.parent / "shared/gpu/nullgpu")) / "run.sh"


@functools.cache
def why_not() -> str | None:
    """Why the driver cannot be used; None where it can. The first use builds it."""
    if not RUN.exists():
        return f"no driver in {RUN.parent}; NULLGPU names its folder"
    question = "import torch; assert torch.cuda.is_available()"
    asked = [str(RUN), sys.executable, sys.executable, "-c", question]
    result = subprocess.run(asked, capture_output=True, text=True, timeout=280, check=False)
    return None if result.returncode == 0 else f"the driver cannot be built: {result.stderr.strip()[-200:]}"


def run(script: str, *arguments: object, **environment: str) -> str:
    """What a script of this folder prints, its last line. Skips the test where the driver is not there."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    command = [
        str(word) for word in (RUN, sys.executable, sys.executable, ROOT / "tests/rehearsal" / script, *arguments)
    ]
    # An empty value leaves PyTorch's caching on, and with it the peaks.
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "PYTORCH_NO_CUDA_MEMORY_CACHING": "", **environment}
    result = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=580, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()[-1]
