"""Ranks as processes of a test, which end with it."""

import faulthandler
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

DEADLINE = 240  # seconds, less than pytest's own timeout
STACKS_AFTER = 180


def run_ranks(rank: Callable[..., None], arguments: tuple[Any, ...], ranks: int) -> None:
    """Runs rank(number, *arguments) in a process for each number, as one gloo process group of one thread each.

    Fails where a rank raises, or takes too long: then it prints the stack of each of its threads first.
    """
    # Each imports what it needs anew: a forked one would inherit threads and process groups of the tests before it.
    everyone = mp.get_context("spawn").Barrier(ranks)
    with tempfile.TemporaryDirectory() as folder:
        group = (f"file://{folder}/rendezvous", ranks, everyone)
        context = mp.start_processes(_run_rank, (group, rank, arguments), ranks, join=False, start_method="spawn")
        deadline = time.monotonic() + DEADLINE
        try:
            while not context.join(timeout=5):
                if time.monotonic() > deadline:
                    pytest.fail(f"the ranks did not finish within {DEADLINE} s")
        finally:
            for process in context.processes:
                process.kill()


def _run_rank(number: int, group: tuple[str, int, Any], rank: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    faulthandler.dump_traceback_later(STACKS_AFTER, exit=True)
    rendezvous, ranks, everyone = group
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=number, world_size=ranks)
    rank(number, *arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    everyone.wait()
    # Without destroy_process_group: in PyTorch 2.7 it waits with the GIL for gloo's thread, and that one waits for the
    # GIL as long as it has a tensor of the last collective to release (pytorch/pytorch#154976).
    os._exit(0)
