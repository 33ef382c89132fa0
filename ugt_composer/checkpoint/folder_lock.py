"""One run at a time writes into a save folder. The kernel lets go of the lock when its run dies, however that dies."""

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from composer.utils import dist

from ugt_composer.checkpoint.whole_state import from_rank_0
from ugt_composer.errors import UserError

log = logging.getLogger(__name__)
LOCK = ".lock"
UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}

_held: set[int] = set()


def _forget_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)  # the parent's lock stays, and is not kept by a worker that outlives it
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)


@contextmanager
def folder_lock(folder: str | Path, patience: float) -> Iterator[None]:
    """Holds the folder, which exists, against other runs, by its rank 0. A collective.

    Args:
        patience: seconds to wait for a run that is about to end.

    Raises:
        UserError: on all ranks, naming the process that has it.
    """
    descriptor: int | None = None
    problem: str | None = None
    if dist.get_global_rank() == 0:
        try:
            descriptor = _acquire(Path(folder), patience)
        except UserError as error:
            problem = str(error)
    if (problem := from_rank_0(problem)) is not None:
        raise UserError(problem)
    try:
        yield
    finally:
        if descriptor is not None:
            _held.discard(descriptor)
            os.close(descriptor)


def _acquire(folder: Path, patience: float) -> int | None:
    """The descriptor of the locked file; None where the file system knows no locks."""
    deadline, told = time.monotonic() + patience, False
    path = folder / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}; expected a save_folder to write to") from None
    _held.add(descriptor)
    try:
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise UserError(
                    f"save_folder {folder} is in use by another run ({_holder(path)}): two would overwrite each "
                    "other's checkpoints; wait for it, end it, or take another save_folder"
                )
            if not told:
                log.warning(
                    "%s: another run (%s) is in it; waiting up to %.0f s for its end", folder, _holder(path), patience
                )
                told = True
            time.sleep(0.1)
        _sign(descriptor)
    except BaseException as error:
        _held.discard(descriptor)
        os.close(descriptor)
        if isinstance(error, OSError) and error.errno in UNSUPPORTED:
            log.warning(
                "%s: its file system knows no locks (%s): a second run into it would not be noticed",
                folder,
                error.strerror,
            )
            return None
        raise
    return descriptor


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(descriptor: int) -> None:
    signature = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, signature, 0)
    except OSError as error:  # a full disk: the lock holds without its name
        log.warning("the lock of the save folder cannot be signed: %s", error.strerror)


def _holder(path: Path) -> str:
    try:
        signature = json.loads(path.read_text("utf-8"))
        own = signature["pid"] == os.getpid() and signature["host"] == socket.gethostname()
        here = "; this very process: close its trainer first" if own else ""
        return f"pid {signature['pid']} on {signature['host']}{here}"
    except (OSError, ValueError, KeyError, TypeError):
        return "which has not signed its lock"
