"""Streaming's shared memory under names of our own, so that no run meets another's, alive or killed.

Streaming 0.13 numbers its segments and lock files from 0 on and takes the first number that looks free. What a killed
run left is never removed; two runs that start together take the same number, and so do two launchers of one job on
one machine; ranks that look at different moments take different ones. Here the first rank of a node draws the number
at random and tells it to the others, and each process that uses it holds a lock on a file next to the segments. The
kernel lets go of that lock when the last of them is gone, however it ended: whoever takes it then may remove what they
left. That holds across containers which share /dev/shm but do not see each other's processes, where a recorded
process id would mean nothing.
"""

import atexit
import fcntl
import os
import secrets
import time
from _posixshmem import shm_unlink
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir

import streaming
import streaming.base.dataset
from composer.utils import dist
from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, LOCALS, SHARD_ACCESS_TIMES, SHM_TO_CLEAN, TICK
from streaming.base.shared import SharedMemory
from streaming.base.world import World

from ugt_composer.storage.file_lock import is_linked

if streaming.__version__ != "0.13.0":
    raise ImportError(f"streaming is {streaming.__version__}; what is replaced here was read in 0.13.0")

LEASE = "ugt_lease"
SMALLEST, NUMBERS = 10**6, 9 * 10**8  # above any that Streaming itself reaches; macOS allows short names only
PATIENCE = 60.0  # seconds that a rank waits for the first one of its node

_held: dict[int, int] = {}  # number → descriptor of its lease, in this process
os.register_at_fork(after_in_child=_held.clear)  # a child keeps the descriptors open, and leaves the rest to us


@contextmanager
def own_segments() -> Iterator[None]:
    """While a StreamingDataset is built: its segments get a number that nobody else has or had."""
    before = streaming.base.dataset.get_shm_prefix
    streaming.base.dataset.get_shm_prefix = _agree_on_a_number
    try:
        yield
    finally:
        streaming.base.dataset.get_shm_prefix = before


def _agree_on_a_number(
    streams_local: list[str], streams_remote: Sequence[str | None], world: World, retry: int = 0
) -> tuple[int, SharedMemory]:
    """Stands in for Streaming's `get_shm_prefix`: the number, and the segment in which Streaming marks its folders."""
    number, failure = 0, None
    if world.is_local_leader:
        try:
            remove_stale()
            number = take_lease()
            folders = SharedMemory(f"{number:06}_{LOCALS}", True, 4)
        except OSError as error:  # told to all, or the others would wait
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
    """Until the first rank has made the last of its segments: one that is made but empty yet cannot be attached to."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            SharedMemory(name, False)
            return
        except (FileNotFoundError, ValueError):
            time.sleep(TICK)
    raise RuntimeError(f"the first rank of this node made no shared memory within {PATIENCE:g} s; its log says why")


def lease_folder() -> Path:
    """Where leases lie: with the segments where these are files, so that who shares the ones shares the others."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else Path(gettempdir())


def take_lease() -> int:
    """Draws a number that is nobody's, and holds its lease until this process and its children are gone."""
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
    """Holds a lease that another process of this node has taken."""
    if not _hold(number, os.open(_lease(number), os.O_RDWR)):
        raise RuntimeError(f"{_lease(number)} was removed; the first rank of this node has ended")


def remove_stale() -> list[int]:
    """Removes segments and lock files whose processes are all gone. Returns their numbers. Touches nobody else's."""
    removed = []
    for path in lease_folder().glob(f"*_{LEASE}"):
        number = path.name.removesuffix(f"_{LEASE}")
        if not number.isdecimal() or (descriptor := _alone(path)) is None:
            continue
        _remove(int(number), descriptor)
        os.close(descriptor)
        removed.append(int(number))
    return removed


@atexit.register
def _leave() -> None:
    """The last process of a node to end removes what is left; Streaming itself leaves its lock files."""
    for number, descriptor in _held.items():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        if is_linked(descriptor):
            _remove(number, descriptor)
    _held.clear()


def _lease(number: int) -> Path:
    return lease_folder() / f"{number:06}_{LEASE}"


def _hold(number: int, descriptor: int) -> bool:
    """Shares the lock of a lease. Forked processes share it too, by the descriptor that they inherit."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if not is_linked(descriptor):  # removed between its creation and our lock
        os.close(descriptor)
        return False
    _held[number] = descriptor
    return True


def _alone(path: Path) -> int | None:
    """A descriptor of a lease that nobody holds, locked; None where somebody does, or it is another user's."""
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
    """Removes segments, lock files and, last, the lease, which the caller has for himself."""
    for name in SHM_TO_CLEAN:
        with suppress(OSError):
            shm_unlink(f"/{number:06}_{name}")
    folder = Path(os.fsdecode(os.pread(lease, 4096, 0)) or gettempdir())
    for name in (BARRIER_FILELOCK, CACHE_FILELOCK):
        with suppress(OSError):
            (folder / f"{number:06}_{name}").unlink()
    with suppress(OSError):
        _lease(number).unlink()
