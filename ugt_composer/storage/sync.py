"""To the disk and back: what outlives a power cut, and what really lies there."""

import errno
import os
from pathlib import Path

NOT_OFFERED = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF}  # by some network file systems


def sync_folder(folder: Path) -> None:
    """Flushes a folder's names, so that a rename outlives a power cut."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def sync_file(path: Path) -> None:
    """Flushes a file that somebody else wrote."""
    _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
    finally:
        os.close(descriptor)


def forget_cached(path: Path) -> None:
    """Asks the kernel to read the file, flushed before, from the disk the next time."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        pass  # it is a wish, and some file systems know no cache
    finally:
        os.close(descriptor)
