"""File locks that a killed process cannot leave behind: the kernel releases them even if the file remains."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the exclusive lock of `path` on this machine; waits for it if necessary. Removes the file afterwards."""
    descriptor = _acquire(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release: a waiting process then sees that it is gone and retries
        os.close(descriptor)


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Holds the lock of an existing file and removes the file afterwards, unless another process holds the lock: then
    yields False."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:  # removed since, or another user's
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = is_linked(descriptor)
        except OSError:
            free = False
        yield free
        if free:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if is_linked(descriptor):
            return descriptor
        os.close(descriptor)


def is_linked(descriptor: int) -> bool:
    """Whether the file still has its name: a lock on one that was removed excludes nobody."""
    return os.fstat(descriptor).st_nlink > 0
