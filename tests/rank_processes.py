"""Runs ranks as processes of a test, which end with it."""

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

    Fails if a rank raises an error or takes too long; in the second case it prints the stacks of its threads first.
    """
    # Spawned, because a forked process would inherit threads and process groups of earlier tests.
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
    # No destroy_process_group: in PyTorch 2.7 it holds the GIL while it waits for gloo's thread, which needs the GIL to
    # release a tensor of the last collective: a deadlock (pytorch/pytorch#154976).
    os._exit(0)
