"""Files that are hashed while they are written and read back before they get their name."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from ugt_composer.storage.record import Facts, read_back


class HashedFile:
    """What is written goes into a file and, in the same order, into its hash.

    Attributes:
        error: what the disk refused with. Who writes through C++ raises something that does not tell.
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        self.hash = xxhash.xxh64()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.hash.update(data)
        self.size += memoryview(data).nbytes
        return memoryview(data).nbytes

    def flush(self) -> None:
        try:
            self.file.flush()
        except OSError as error:
            self.error = error
            raise

    @property
    def facts(self) -> Facts:
        return Facts(self.size, self.hash.hexdigest())


def write_hashed(path: Path, write: Callable[[HashedFile], Any]) -> Facts:
    """Writes a file, flushes it to the disk and reads it back. Returns its facts.

    Raises:
        OSError: the disk refuses, or gives back something else than was written.
    """
    with path.open("wb") as file:
        hashed = HashedFile(file)
        try:
            write(hashed)
        except Exception as error:
            raise (hashed.error or error) from None
        hashed.flush()
        os.fsync(file.fileno())
    if read_back(path) != hashed.facts:
        raise unlike_written(path)
    return hashed.facts


def unlike_written(path: Path) -> OSError:
    return OSError(errno.EIO, "what was read back is not what was written", str(path))


@contextmanager
def or_removed(*temporaries: Path) -> Iterator[None]:
    """Removes what was half written where the block fails."""
    try:
        yield
    except BaseException:
        for path in temporaries:
            try:
                path.unlink(missing_ok=True)
            except OSError:
                continue  # the folder is gone or read-only: the first error tells
        raise
