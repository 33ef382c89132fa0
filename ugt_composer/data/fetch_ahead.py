"""Shards are fetched while the rows before them are read."""

import threading
import traceback
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ugt_composer.errors import UserError

STRIDE = 256  # rows that are looked at together


class FetchAhead:
    """A thread that fetches the shards of the rows to come, each before its first row is read.

    Args:
        fetch: brings a shard, given its number; cheap where it is here already.
        shard_ids: (rows,) the shard of each row, in the order in which they are read.
        ahead: how many rows before they are read their shards may be fetched.

    Attributes:
        failure: what ended the thread before its time, for the reader to raise.
    """

    def __init__(self, fetch: Callable[[int], None], shard_ids: NDArray[np.int64], ahead: int):
        self.failure: Exception | None = None
        self._fetch, self._shard_ids, self._ahead = fetch, shard_ids, ahead
        self._read, self._is_left = 0, False
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True, name="fetch ahead")
        self._thread.start()

    def has_read(self, rows: int) -> None:
        """Tells that the first so many rows were read."""
        with self._moved:
            self._read = rows
            self._moved.notify()

    def leave(self) -> None:
        """Ends the thread, after the shard that it is fetching. Does not wait for it."""
        with self._moved:
            self._is_left = True
            self._moved.notify()

    def end(self) -> None:
        """Once all rows were read: waits until nothing is fetched any more."""
        self.leave()
        self._thread.join()

    def _run(self) -> None:
        stride = max(1, min(STRIDE, self._ahead))
        try:
            for begin in range(0, len(self._shard_ids), stride):
                if not self._is_wanted(begin):
                    return
                for shard_id in dict.fromkeys(self._shard_ids[max(begin, self._read) : begin + stride].tolist()):
                    if self._is_left:
                        return
                    self._fetch(shard_id)
        except UserError as error:
            self.failure = error
        except Exception:
            self.failure = RuntimeError(f"a background thread failed:\n{traceback.format_exc()}")

    def _is_wanted(self, begin: int) -> bool:
        """Waits until the row at `begin` may be fetched. False: it is no longer wanted."""
        with self._moved:
            self._moved.wait_for(lambda: self._is_left or begin - self._read <= self._ahead)
        return not self._is_left
