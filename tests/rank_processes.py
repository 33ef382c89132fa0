"""Ranks as processes of a test, which end with it."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch.multiprocessing as mp


def run_ranks(rank: Callable[..., None], arguments: tuple[Any, ...], ranks: int, seconds: float) -> None:
    """Runs rank(number, *arguments) in a process for each number. Fails where one raises, or takes too long.

    Each imports what it needs anew: a forked one would inherit threads and process groups of the tests before it.
    """
    context = mp.start_processes(rank, args=arguments, nprocs=ranks, join=False, start_method="spawn")
    deadline = time.monotonic() + seconds
    try:
        while not context.join(timeout=5):
            if time.monotonic() > deadline:
                pytest.fail(f"the ranks did not finish within {seconds} s")
    finally:
        for process in context.processes:
            process.kill()
