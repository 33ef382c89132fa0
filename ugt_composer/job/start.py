"""How a rank starts: it listens for signals before anything slow, and imports what is slow in less time."""

import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ugt_composer.job.cpus import share_cpus
from ugt_composer.job.exit import end_with_launcher
from ugt_composer.job.signals import warning
from ugt_composer.terminal import print_line


class AboveLiveLine(logging.Handler):
    """Writes log messages to stderr, above the line that shows the progress."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print_line(self.format(record))
        except Exception:  # a message must not end the program
            self.handleError(record)


def begin_rank() -> None:
    """Takes the signals, shares the CPUs with other processes, and asks to be ended with the launcher. To be called
    before slow imports."""
    warning.listen()
    share_cpus()
    end_with_launcher()
    write_log()


def write_log() -> None:
    """Log messages and Python's warnings go to stderr, from WARNING on, without the libraries' notes to developers:
    other code than the user's is to change because of them. `python -W` shows these too."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[AboveLiveLine()])
    logging.captureWarnings(True)
    warnings.formatwarning = _in_one_line
    if not sys.warnoptions:
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)


def _in_one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{category.__name__}: {' '.join(str(message).split())} ({filename}:{lineno})"


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
