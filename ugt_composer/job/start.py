"""How a rank starts: it listens for signals before anything slow, and imports what is slow in less time."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ugt_composer.job.cpus import share_cpus
from ugt_composer.job.exit import end_with_launcher
from ugt_composer.job.signals import warning


def begin_rank() -> None:
    """Takes the signals, shares the CPUs with other processes, and asks to be ended with the launcher. To be called
    before slow imports."""
    warning.listen()
    share_cpus()
    end_with_launcher()


@contextmanager
def slow_imports(compiles: bool) -> Iterator[None]:
    """Around the first import of PyTorch and Composer.

    Args:
        compiles: whether the run compiles its model.
    """
    if not compiles:
        # PyTorch's import would start a pool of compiler processes, which a run that ends has to wait for.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    gc.disable()  # a quarter of the import's time
    try:
        yield
    finally:
        gc.freeze()  # what was imported stays: collections during training skip it, half a second each time
        gc.enable()
        warning.listen()  # again: Composer's import takes SIGTERM and SIGINT


def begin_to_close() -> None:
    """Training is over: signals no longer end the process before its files are closed."""
    warning.leaving = True
