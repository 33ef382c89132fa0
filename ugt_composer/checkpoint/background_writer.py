"""What a checkpoint holds is copied while the training stands still; it is written while the training goes on."""

import threading
from collections.abc import Callable
from pathlib import Path

from ugt_composer.checkpoint.rank0_errors import cannot_save, save_on_rank_0


class Writer:
    """Writes into a save folder, on rank 0, one thing after the other in a thread beside the training."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def begin(self, write: Callable[[], None]) -> None:
        """On rank 0, once `finish` was called."""
        assert self._thread is None
        # Waited for wherever a run ends in order, so that nothing is lost but by a kill.
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint writer", daemon=True)
        self._thread.start()

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:
            self._failure = error

    def wait(self) -> None:
        """Until nothing is being written. What went wrong is kept."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> None:
        """Waits. A collective.

        Raises:
            RunError: on every rank, where the folder could not be written.
        """
        save_on_rank_0(self.folder, self._wait_and_raise)

    def check(self) -> None:
        """RunError on rank 0, soon after the folder could not be written; the other ranks end with it."""
        if isinstance(self._failure, OSError):
            raise cannot_save(self.folder, self._failure.strerror or str(self._failure))
        if self._failure is not None:
            raise self._failure

    def _wait_and_raise(self) -> None:
        self.wait()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
