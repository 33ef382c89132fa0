"""The driver of the fake GPU: a preloaded CUDA library whose kernels compute nothing.

It is in the folder that NULLGPU names, or in shared/gpu/nullgpu beside the repository.
"""

import fcntl
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("NULLGPU") or ROOT.parent / "shared" / "gpu" / "nullgpu")
TOOLS = ("bash", "g++", "as", "nm")
OF_OTHER_DEVICES = ("DS_ACCELERATOR", "CUBLAS_WORKSPACE_CONFIG", "LD_PRELOAD")  # an earlier test may have set them


def on_driver() -> list[str]:
    """The start of a command line that runs a command on the driver, built for this PyTorch. Skips if there is none."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    return ["bash", str(FOLDER / "run.sh"), sys.executable]


@functools.cache
def why_not() -> str | None:
    """Why the driver cannot be used; None if it can. The first call builds it."""
    run = FOLDER / "run.sh"
    if not run.exists():
        return f"{FOLDER} is missing: no driver to rehearse on; NULLGPU names its folder"
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"{', '.join(absent)} missing: the driver for rehearsals cannot be built"
    with (Path(tempfile.gettempdir()) / f"nullgpu-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other workers of pytest build into the same folder
        words = ["bash", str(run), sys.executable, "true"]
        built = subprocess.run(words, capture_output=True, text=True, check=False, timeout=240)
    return f"the driver for rehearsals was not built: {built.stderr.strip()[-300:]}" if built.returncode else None


def run(script: str, *arguments: object, **changes: str) -> str:
    """Runs a script of this folder. Returns the last line that it prints."""
    command = [*on_driver(), sys.executable, str(ROOT / "tests/rehearsal" / script), *map(str, arguments)]
    settings = environment(**changes)
    result = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=580, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()[-1]


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in OF_OTHER_DEVICES}
    # One compile thread: no pool of compiler processes.
    threads = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    without_triton = {"UGT_KERNELS": "0"}  # the driver cannot load its kernels
    return {**kept, "PYTHONPATH": str(ROOT), **threads, **without_triton, **changes}
