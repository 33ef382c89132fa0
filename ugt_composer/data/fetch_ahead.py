"""Fetches shards in a background thread while earlier rows are read."""

import threading
import traceback
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ugt_composer.errors import UserError

STRIDE = 256  # rows whose shards are fetched in one step


class FetchAhead:
    """A thread that fetches the shards of upcoming rows, each before its first row is read.

    Args:
        fetch: fetches a shard, given its number; cheap if it is local already.
        shard_ids: (rows,) the shard of each row, in the order in which they are read.
        ahead: how many rows before a row is read its shard may be fetched.

    Attributes:
        failure: the exception that ended the thread early, for the reader to raise.
    """

    def __init__(self, fetch: Callable[[int], None], shard_ids: NDArray[np.int64], ahead: int):
        self.failure: Exception | None = None
        self._fetch, self._shard_ids, self._ahead = fetch, shard_ids, ahead
        self._read, self._stopped = 0, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True, name="fetch ahead")
        self._thread.start()

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
        stride = max(1, min(STRIDE, self._ahead))
        try:
            for begin in range(0, len(self._shard_ids), stride):
                if not self._wait_for_turn(begin):
                    return
                for shard_id in dict.fromkeys(self._shard_ids[max(begin, self._read) : begin + stride].tolist()):
                    if self._stopped:
                        return
                    self._fetch(shard_id)
        except UserError as error:
            self.failure = error
        except Exception:
            self.failure = RuntimeError(f"the background thread that fetches shards failed:\n{traceback.format_exc()}")

    def _wait_for_turn(self, begin: int) -> bool:
        """Waits until the shard of the row at `begin` may be fetched. Returns False if the thread is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or begin - self._read <= self._ahead)
        return not self._stopped
