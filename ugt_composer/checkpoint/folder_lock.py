"""A lock that lets only one run write to a save folder. The kernel releases it when the run's process ends or dies."""

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

from ugt_composer.checkpoint.machines import ONE_MACHINE, Machines
from ugt_composer.errors import UserError

log = logging.getLogger(__name__)
LOCK = ".lock"
UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}

_locked_descriptors: set[int] = set()


def _forget_in_child() -> None:
    for descriptor in _locked_descriptors:
        os.close(descriptor)  # the parent keeps its lock; a worker that outlives it does not
    _locked_descriptors.clear()


os.register_at_fork(after_in_child=_forget_in_child)


@contextmanager
def folder_lock(folder: str | Path, patience: float, machines: Machines = ONE_MACHINE) -> Iterator[None]:
    """One rank locks the folder, which must exist, against other runs. A collective.

    Args:
        patience: seconds to wait for another run to release the lock.
        machines: one rank of those that see the same folder locks it.

    Raises:
        UserError: on all ranks, naming the process that holds the lock.
    """
    descriptor: int | None = None
    problem: str | None = None
    if machines.is_leader:
        try:
            descriptor = _acquire(Path(folder), patience)
        except UserError as error:
            problem = str(error)
    try:
        for reason in filter(None, dist.all_gather_object(problem)):
            raise UserError(reason)
        yield
    finally:
        if descriptor is not None:
            _locked_descriptors.discard(descriptor)
            os.close(descriptor)


def _acquire(folder: Path, patience: float) -> int | None:
    """The descriptor of the locked file; None if the file system does not support locks."""
    deadline, is_logged = time.monotonic() + patience, False
    path = folder / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}; expected a save_folder to write to") from None
    _locked_descriptors.add(descriptor)
    try:
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise UserError(
                    f"save_folder {folder} is in use by another run ({_holder(path)}): two runs would overwrite each "
                    "other's checkpoints; wait for it, end it, or set another save_folder"
                )
            if not is_logged:
                log.warning(
                    "%s: in use by another run (%s); waiting up to %.0f s for it to end",
                    folder,
                    _holder(path),
                    patience,
                )
                is_logged = True
            time.sleep(0.1)
        _write_owner(descriptor)
    except BaseException as error:
        _locked_descriptors.discard(descriptor)
        os.close(descriptor)
        if isinstance(error, OSError) and error.errno in UNSUPPORTED:
            log.warning(
                "%s: the file system does not support locks (%s): a second run in this folder would go unnoticed",
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


def _write_owner(descriptor: int) -> None:
    owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner, 0)
    except OSError as error:  # a full disk: the lock works without it
        log.warning("the process id cannot be written to the lock file of the save folder: %s", error.strerror)


def _holder(path: Path) -> str:
    try:
        owner = json.loads(path.read_text("utf-8"))
        is_this_process = owner["pid"] == os.getpid() and owner["host"] == socket.gethostname()
        hint = "; this is the current process: close its trainer first" if is_this_process else ""
        return f"pid {owner['pid']} on {owner['host']}{hint}"
    except (OSError, ValueError, KeyError, TypeError):
        return "process id unknown"
