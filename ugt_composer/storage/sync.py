"""Flushes files to the disk, to survive a power failure, and reads them back from it instead of the page cache."""

import errno
import os
from pathlib import Path

UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF}  # fsync on some network file systems


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries, so that a rename survives a power failure."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def sync_file(path: Path) -> None:
    """Flushes a file that other code wrote."""
    _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def forget_cached(path: Path) -> None:
    """Asks the kernel to drop a flushed file from the page cache, so that the next read comes from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        pass  # only a hint, which some file systems do not support
    finally:
        os.close(descriptor)
