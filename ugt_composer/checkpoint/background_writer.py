"""Writes checkpoints in the background: training stops only while their content is copied."""

import threading
from collections.abc import Callable
from pathlib import Path

from ugt_composer.checkpoint.rank0_errors import cannot_save, save_on_rank_0


class Writer:
    """Writes to a save folder on rank 0, in a background thread, one write at a time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def begin(self, write: Callable[[], None]) -> None:
        """Starts a write in the background. On rank 0 only, after `finish` has returned."""
        assert self._thread is None
        # A run that ends normally waits for the thread: only a killed run loses what is being written.
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint writer", daemon=True)
        self._thread.start()

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:
            self._failure = error

    def wait(self) -> None:
        """Waits until nothing is being written. An error is kept for `finish` and `check`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> None:
        """Waits, and raises the error of the last write. A collective.

        Raises:
            RunError: on every rank, if the folder could not be written.
        """
        save_on_rank_0(self.folder, self._wait_and_raise)

    def check(self) -> None:
        """Raises a failed write's error on rank 0, an OSError as RunError; the other ranks end too."""
        if isinstance(self._failure, OSError):
            raise cannot_save(self.folder, self._failure.strerror or str(self._failure))
        if self._failure is not None:
            raise self._failure

    def _wait_and_raise(self) -> None:
        self.wait()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
