"""Reads packed rows of shard files by row number, keeping the files open.

An MDS file with one `bytes` column: uint32 n, uint32 offsets (n + 1) of the samples in the file, then the samples, each
a uint32 length and that many bytes.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ugt_composer.data.integrity import ADVICE
from ugt_composer.errors import UserError

MOST_OPEN = 64  # files kept open per process: a shuffled block draws from several at once
SIZE = np.dtype("<u4")


class ShardRows:
    """One shard. Raises FileNotFoundError if its file is missing; once open, it may be deleted.

    Uses `pread`, not `mmap`: a process that reads a mapped file beyond its end, after a truncation, is killed.

    Args:
        path: of the file.
        data: its content, decompressed; None reads the file.
    """

    def __init__(self, path: Path, data: bytes | None = None):
        self._path = path
        if data is None:
            self._file = path.open("rb", buffering=0)
            self._read_at: Callable[[int, int], bytes] = partial(os.pread, self._file.fileno())
        else:
            self._read_at = lambda size, begin: data[begin : begin + size]
        count = int(self._numbers(1, 0)[0])
        self._offsets = self._numbers(count + 1, SIZE.itemsize)

    def rows(self, numbers: NDArray[np.int64]) -> list[bytes]:
        begins = self._offsets[numbers].astype(np.int64) + SIZE.itemsize
        sizes = (self._offsets[numbers + 1] - begins).tolist()
        rows = list(map(self._read_at, sizes, begins.tolist()))
        if list(map(len, rows)) != sizes:
            raise self._cut_short()
        return rows

    def _numbers(self, count: int, begin: int) -> np.ndarray:
        data = self._read_at(count * SIZE.itemsize, begin)
        if len(data) != count * SIZE.itemsize:
            raise self._cut_short()
        return np.frombuffer(data, SIZE)

    def _cut_short(self) -> UserError:
        return UserError(f"{self._path}: is truncated; {ADVICE}")


class OpenShards:
    """Keeps the most recently used shard files open."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, ShardRows] = OrderedDict()

    def rows(self, path: Path, numbers: NDArray[np.int64]) -> list[bytes]:
        shard = self._open.get(path)
        if shard is None:
            shard = self._open[path] = ShardRows(path)
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(path)
        return shard.rows(numbers)

    def forget(self, path: Path) -> None:
        """Drops a file that was deleted or replaced: while open, it takes disk space and returns its old bytes."""
        self._open.pop(path, None)
