"""Ends a rank that makes no progress, whatever it is blocked in."""

import os
import threading
import time

from ugt_composer.job.exit import NOTE_WAIT, end_stalled, whereabouts
from ugt_composer.job.group_timeouts import limit_groups, nccl_error

# Seconds after the timeout: the CPU-side all-reduce fails first, which shows that another rank is the cause.
BEHIND = 30.0
CHECK_INTERVAL = 1.0  # seconds between two checks


class Watchdog:
    """A thread that ends the process when nothing was finished within the timeout, or when NCCL reports an error.

    A rank whose GPU waits for a rank that is gone is blocked in a device synchronisation that never returns, so that no
    error can be raised in its main thread. A single process is not watched: no other waits for it.

    Args:
        start_timeout: `dist_start_timeout`, seconds from `watch` to the end of the first batch.
        timeout: `dist_timeout`, seconds without progress after that.
    """

    def __init__(self, start_timeout: float, timeout: float):
        self._timeouts = {"dist_start_timeout": max(start_timeout, timeout), "dist_timeout": timeout}
        self._key = "dist_start_timeout"
        self._last_progress: float | None = None  # time.monotonic(); None: not watching
        self._closed = threading.Event()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            threading.Thread(target=self._check_until_closed, daemon=True, name="watchdog").start()

    def timeout(self) -> float:
        """The timeout that applies now, in seconds."""
        return self._timeouts[self._key]

    def watch(self) -> None:
        self._last_progress = time.monotonic()

    def rest(self) -> None:
        """Stops watching until `watch`, because between calls of the trainer no rank has to make progress."""
        self._last_progress = None

    def close(self) -> None:
        """Ends the thread."""
        self._last_progress = None
        self._closed.set()

    def progress(self) -> None:
        if self._last_progress is not None:
            self._last_progress = time.monotonic()

    def progress_in_training(self) -> None:
        """Counts as progress only after the first batch: compilation and the first shards have one timeout together."""
        if self._key == "dist_timeout":
            self.progress()

    def trained_a_batch(self) -> None:
        if self._key != "dist_timeout":
            self._key = "dist_timeout"
            limit_groups(self.timeout())
        self.progress()

    def _check_until_closed(self) -> None:
        while not self._closed.wait(CHECK_INTERVAL):
            if self.reason() is None or self._closed.wait(NOTE_WAIT):
                continue
            # The main thread had time to raise an error of its own, whose message would say more, and has not.
            if (reason := self.reason()) is not None:
                end_stalled(reason)

    def reason(self) -> str | None:
        """Why this rank must end; None while it makes progress."""
        last_progress = self._last_progress
        if last_progress is None:
            return None
        limit = self.timeout()
        if time.monotonic() - last_progress > limit + BEHIND:
            return f"no progress within {self._key} ({limit:g} s); the main thread is at {whereabouts()}"
        error = nccl_error()
        return None if error is None else f"NCCL reports a {error}; the main thread is at {whereabouts()}"
