"""Ranks as processes of a test, which end with it."""

import faulthandler
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch.multiprocessing as mp

DEADLINE = 240  # seconds, less than pytest's own timeout: a busy machine takes half a minute for the imports alone
STACKS_AFTER = 180


def run_ranks(rank: Callable[..., None], arguments: tuple[Any, ...], ranks: int) -> None:
    """Runs rank(number, *arguments) in a process for each number. Fails where one raises, or takes too long.

    Each imports what it needs anew: a forked one would inherit threads and process groups of the tests before it. A
    rank that is still busy after three minutes prints the stack of each of its threads, and fails.
    """
    context = mp.start_processes(_run_rank, args=(rank, arguments), nprocs=ranks, join=False, start_method="spawn")
    deadline = time.monotonic() + DEADLINE
    try:
        while not context.join(timeout=5):
            if time.monotonic() > deadline:
                pytest.fail(f"the ranks did not finish within {DEADLINE} s")
    finally:
        for process in context.processes:
            process.kill()


def _run_rank(number: int, rank: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    faulthandler.dump_traceback_later(STACKS_AFTER, exit=True)
    rank(number, *arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the interpreter's end would wait for threads of libraries
