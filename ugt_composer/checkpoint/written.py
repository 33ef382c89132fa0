"""Writes files that are hashed while they are written, and read back before they get their final name."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from ugt_composer.storage.record import Facts, read_back


class HashedFile:
    """A file whose hash is updated with each write.

    Attributes:
        error: the OSError of a failed write; writers in C++, such as torch.save, raise another error that hides it.
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
        OSError: writing failed, or what was read back is not what was written.
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
    """Removes the incomplete files if the block raises an error."""
    try:
        yield
    except BaseException:
        for path in temporaries:
            try:
                path.unlink(missing_ok=True)
            except OSError:
                continue  # the folder is gone or read-only: the error of the block explains it
        raise
