"""The packed rows of a shard's file by number, without opening the file for each.

An MDS file of one `bytes` column: uint32 n, uint32 offsets (n + 1) of the samples in the file, then the samples, each
the uint32 length of its bytes, and the bytes.
"""

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np

from ugt_composer.data.integrity import ADVICE
from ugt_composer.errors import UserError

MOST_OPEN = 64  # files that a process keeps open: a shuffled block draws from several at once
SIZE = np.dtype("<u4")


class ShardRows:
    """One file. Raises FileNotFoundError where it is not there; once open it may be removed.

    Read by position and not mapped: a process that touches a mapped file which was cut short is killed.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file = path.open("rb", buffering=0)
        count = int(self._numbers(1, 0)[0])
        self._offsets = self._numbers(count + 1, SIZE.itemsize)

    def __getitem__(self, number: int) -> bytes:
        begin, end = self._offsets[number : number + 2].tolist()
        return self._read(end - begin - SIZE.itemsize, begin + SIZE.itemsize)

    def _numbers(self, count: int, begin: int) -> np.ndarray:
        return np.frombuffer(self._read(count * SIZE.itemsize, begin), SIZE)

    def _read(self, size: int, begin: int) -> bytes:
        data = os.pread(self._file.fileno(), size, begin)
        if len(data) != size:
            raise UserError(f"{self._path}: was cut short while it was read; {ADVICE}")
        return data


class OpenShards:
    """The files used last."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, ShardRows] = OrderedDict()

    def row(self, path: Path, number: int) -> bytes:
        rows = self._open.get(path)
        if rows is None:
            rows = self._open[path] = ShardRows(path)
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(path)
        return rows[number]

    def forget(self, path: Path) -> None:
        """Of a file that was taken away or replaced: an open one keeps its room on the disk, and its old bytes."""
        self._open.pop(path, None)
