"""Ends a rank that makes no progress, whatever it waits for."""

import os
import threading
import time

from ugt_composer.job.exit import NOTE_WAIT, end_stalled, whereabouts
from ugt_composer.job.group_timeouts import limit_groups, nccl_error

BEHIND = 30.0  # seconds after the timeout: the hosts' all-reduce is first, which tells that another rank is the cause
LOOK = 1.0  # seconds between two looks at the clock


class Watchdog:
    """A thread that ends the process when nothing was finished within the timeout, or when NCCL reports an error.

    A rank whose GPU waits for a rank that is gone stands in a synchronisation with the device that never returns, so
    that no error can be raised in its main thread. Of a single process nobody waits: it is not watched.

    Args:
        start_timeout: seconds from `watch` to the end of the first batch, dist_start_timeout.
        timeout: seconds without progress from then on, dist_timeout.
    """

    def __init__(self, start_timeout: float, timeout: float):
        self._timeouts = {"dist_start_timeout": max(start_timeout, timeout), "dist_timeout": timeout}
        self._key = "dist_start_timeout"
        self._last: float | None = None  # moment of the last progress; None: not watching
        self._closed = threading.Event()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            threading.Thread(target=self._look, daemon=True, name="watchdog").start()

    def timeout(self) -> float:
        """Seconds that another rank may take for its next step, now."""
        return self._timeouts[self._key]

    def watch(self) -> None:
        self._last = time.monotonic()

    def rest(self) -> None:
        """Until `watch`: between the calls of a program nothing is waited for."""
        self._last = None

    def close(self) -> None:
        """Ends the thread."""
        self._last = None
        self._closed.set()

    def progress(self) -> None:
        if self._last is not None:
            self._last = time.monotonic()

    def progress_in_training(self) -> None:
        """The first batch, which compiles and waits for the first shards, is one step with all that comes before."""
        if self._key == "dist_timeout":
            self.progress()

    def trained_a_batch(self) -> None:
        if self._key != "dist_timeout":
            self._key = "dist_timeout"
            limit_groups(self.timeout())
        self.progress()

    def _look(self) -> None:
        while not self._closed.wait(LOOK):
            if self.reason() is None or self._closed.wait(NOTE_WAIT):
                continue
            # The main thread has not raised an error of its own meanwhile, which would say more.
            if (reason := self.reason()) is not None:
                end_stalled(reason)

    def reason(self) -> str | None:
        """Why this rank has to end, None while all is well."""
        last = self._last
        if last is None:
            return None
        limit = self.timeout()
        if time.monotonic() - last > limit + BEHIND:
            return f"nothing was finished within {self._key} ({limit:g} s); it stands in {whereabouts()}"
        error = nccl_error()
        return None if error is None else f"NCCL reports a {error}; it stands in {whereabouts()}"
