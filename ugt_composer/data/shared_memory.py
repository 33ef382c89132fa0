"""Unique names for Streaming's shared memory, so that a run never collides with another one, running or killed.

Streaming 0.13 numbers its segments and lock files from 0 and takes the first number that looks free. The leftovers of
a killed run are never removed; two runs that start together take the same number, and so do two launchers of one job
on one machine; ranks that look at different moments take different ones. Here the first rank of a node draws a random
number and sends it to the others, and each process that uses the number holds a lock on a file next to the segments,
the lease. The kernel releases the lock when the last of these processes has ended, for whatever reason: a process that
can take it then may remove what they left. This works across containers that share /dev/shm but do not see each
other's processes, where a recorded process id would mean nothing.
"""

import atexit
import fcntl
import os
import secrets
import time
from _posixshmem import shm_unlink
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir

from composer.utils import dist
from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, LOCALS, SHARD_ACCESS_TIMES, SHM_TO_CLEAN, TICK
from streaming.base.shared import SharedMemory
from streaming.base.world import World

from ugt_composer.storage.file_lock import is_linked

LEASE = "ugt_lease"
SMALLEST, NUMBERS = 10**6, 9 * 10**8  # above any that Streaming reaches; macOS allows short names only
PATIENCE = 60.0  # seconds that a rank waits for the first rank of its node

_leases: dict[int, int] = {}  # number → descriptor of its lease, in this process
os.register_at_fork(after_in_child=_leases.clear)  # a child only inherits the open descriptors; the parent cleans up


def shared_number(
    streams_local: list[str], streams_remote: Sequence[str | None], world: World, retry: int = 0
) -> tuple[int, SharedMemory]:
    """Replaces Streaming's `get_shm_prefix`: the number, and the segment in which Streaming marks its folders."""
    number, failure = 0, None
    if world.is_local_leader:
        try:
            remove_stale()
            number = take_lease()
            folders = SharedMemory(f"{number:06}_{LOCALS}", True, 4)
        except OSError as error:  # sent to all ranks, which would wait otherwise
            failure = f"shared memory in {lease_folder()} cannot be written ({error.strerror})"
    answers = dist.all_gather_object((number, failure))
    if any_failure := next((text for _, text in answers if text), None):
        raise RuntimeError(any_failure)
    if not world.is_local_leader:
        number, _ = answers[world.node * world.ranks_per_node]
        join_lease(number)
        folders = SharedMemory(f"{number:06}_{LOCALS}", False)
        _wait_for_segment(f"{number:06}_{SHARD_ACCESS_TIMES}")
    return number, folders


def _wait_for_segment(name: str) -> None:
    """Waits until the first rank has created the last of its segments; while one is still empty, attaching fails."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            SharedMemory(name, False)
            return
        except (FileNotFoundError, ValueError):
            time.sleep(TICK)
    raise RuntimeError(f"the first rank of this node created no shared memory within {PATIENCE:g} s; see its log")


def lease_folder() -> Path:
    """Where leases are: next to the segments if these are files, so that containers share both or neither."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else Path(gettempdir())


def take_lease() -> int:
    """Draws an unused number and holds its lease until this process and its children have ended."""
    while True:
        number = SMALLEST + secrets.randbelow(NUMBERS)
        try:
            descriptor = os.open(_lease(number), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue
        os.write(descriptor, os.fsencode(gettempdir()))  # where Streaming keeps its lock files
        if _hold(number, descriptor):
            return number


def join_lease(number: int) -> None:
    """Joins the lease that another process of this node has taken."""
    if not _hold(number, os.open(_lease(number), os.O_RDWR)):
        raise RuntimeError(f"{_lease(number)} was removed; the first rank of this node has ended")


def remove_stale() -> list[int]:
    """Removes only segments and lock files whose processes have all ended. Returns their numbers."""
    removed = []
    for path in lease_folder().glob(f"*_{LEASE}"):
        number = path.name.removesuffix(f"_{LEASE}")
        if not number.isdecimal() or (descriptor := _lock_unused(path)) is None:
            continue
        _remove(int(number), descriptor)
        os.close(descriptor)
        removed.append(int(number))
    return removed


@atexit.register
def _clean_up() -> None:
    """The last process of a node to exit removes what is left; Streaming does not remove its lock files."""
    for number, descriptor in _leases.items():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        if is_linked(descriptor):
            _remove(number, descriptor)
    _leases.clear()


def _lease(number: int) -> Path:
    return lease_folder() / f"{number:06}_{LEASE}"


def _hold(number: int, descriptor: int) -> bool:
    """Takes a shared lock on a lease, which forked processes inherit. Returns False if the lease was removed."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if not is_linked(descriptor):  # removed before we got the lock
        os.close(descriptor)
        return False
    _leases[number] = descriptor
    return True


def _lock_unused(path: Path) -> int | None:
    """Locks a lease that no process holds; returns its descriptor. None if it is held or belongs to another user."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_uid == os.getuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_linked(descriptor):
                return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _remove(number: int, lease: int) -> None:
    """Removes segments, lock files and, last, the lease, which the caller has locked exclusively."""
    for name in SHM_TO_CLEAN:
        with suppress(OSError):
            shm_unlink(f"/{number:06}_{name}")
    folder = Path(os.fsdecode(os.pread(lease, 4096, 0)) or gettempdir())
    for name in (BARRIER_FILELOCK, CACHE_FILELOCK):
        with suppress(OSError):
            (folder / f"{number:06}_{name}").unlink()
    with suppress(OSError):
        _lease(number).unlink()
