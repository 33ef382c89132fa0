"""Triton's interpreter, which runs kernels on a CPU; tests/conftest.py switches it on where there is no GPU."""

import os

import pytest

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="for Triton's interpreter (TRITON_INTERPRET=1)"
)
