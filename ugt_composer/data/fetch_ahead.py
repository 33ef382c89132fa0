"""Fetches shards in a background thread while earlier rows are read."""

import threading
import traceback
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ugt_composer.errors import UserError

STRIDE = 256  # rows whose shards are fetched in one step


class FetchAhead:
    """A thread that fetches the shards of upcoming rows, each before its first row is read.

    Args:
        fetch: fetches a shard, given its number; cheap if it is local already.
        ahead: how many rows before a row is read its shard may be fetched.

    Attributes:
        failure: the exception that ended the thread early, for the reader to raise.
    """

    def __init__(self, fetch: Callable[[int], None], ahead: int):
        self.failure: Exception | None = None
        self._fetch, self._ahead = fetch, ahead
        self._steps: deque[tuple[int, NDArray[np.int64]]] = deque()  # the first row of each, and its rows' shards
        self._known, self._read, self._stopped = 0, 0, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True, name="fetch ahead")
        self._thread.start()

    def add(self, shard_ids: NDArray[np.int64]) -> None:
        """Appends rows to those that will be read.

        Args:
            shard_ids: (rows,) the shard of each row, in the order in which they are read.
        """
        stride = max(1, min(STRIDE, self._ahead))
        with self._changed:
            for begin in range(0, len(shard_ids), stride):
                self._steps.append((self._known + begin, shard_ids[begin : begin + stride]))
            self._known += len(shard_ids)
            self._changed.notify()

    def has_read(self, rows: int) -> None:
        """Records that the first `rows` rows have been read."""
        with self._changed:
            self._read = rows
            self._changed.notify()

    def leave(self) -> None:
        """Stops the thread after the shard that it is fetching, without waiting for it."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def end(self) -> None:
        """Stops the thread after all rows have been read, and waits for it to end."""
        self.leave()
        self._thread.join()

    def _run(self) -> None:
        try:
            while (step := self._next_step()) is not None:
                begin, shard_ids = step
                for shard_id in dict.fromkeys(shard_ids[max(self._read - begin, 0) :].tolist()):
                    if self._stopped:
                        return
                    self._fetch(shard_id)
        except UserError as error:
            self.failure = error
        except Exception:
            self.failure = RuntimeError(f"the background thread that fetches shards failed:\n{traceback.format_exc()}")

    def _next_step(self) -> tuple[int, NDArray[np.int64]] | None:
        """Waits until the shards of the next rows may be fetched. None if the thread is to stop."""
        with self._changed:
            self._changed.wait_for(self._may_go_on)
            return None if self._stopped else self._steps.popleft()

    def _may_go_on(self) -> bool:
        return self._stopped or bool(self._steps and self._steps[0][0] - self._read <= self._ahead)
