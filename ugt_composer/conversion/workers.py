"""Converts the partitions in this process or in several of this machine."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_any
from typing import Any

from ugt_composer.catalogue.id_set import SemanticIdSet
from ugt_composer.conversion.partition import PartitionResult, convert_partition
from ugt_composer.conversion.parts import new_part, part_name
from ugt_composer.conversion.settings import Settings
from ugt_composer.errors import UserError
from ugt_composer.jsonl.sources import Partition

REFRESH_SECONDS = 0.1


class WorkerDied(RuntimeError):
    """A worker process ended without a result; most likely the system killed it because memory ran out."""


@dataclass(frozen=True)
class LocalEngine:
    """Runs partitions in `workers` processes.

    Attributes:
        progress: called with the input's size in bytes; returns a function that is called with the bytes done since
            its last call.
    """

    workers: int = 1
    progress: Callable[[int], Callable[[int], None]] = lambda total: lambda new: None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"--workers {self.workers} is less than 1")

    def run(
        self, partitions: Sequence[Partition], place: str, settings: Settings, known: SemanticIdSet | None
    ) -> Generator[tuple[str, PartitionResult], None, None]:
        """Yields, for each partition in order, the name of its part and its result.

        Args:
            place: where the parts are written, see `parts.py`.
            known: the semantic IDs of the catalogue; None if items are not checked.
        """
        on_progress = self.progress(sum(piece.size for partition in partitions for piece in partition))
        workers = min(self.workers, len(partitions))
        if workers > 1:
            yield from _run_in_processes(partitions, place, settings, known, workers, on_progress)
            return
        for number, partition in enumerate(partitions):
            with new_part(place, part_name(number)) as folder:
                result = convert_partition(partition, folder, settings, known, on_progress)
            yield part_name(number), result


def _run_in_processes(
    partitions: Sequence[Partition],
    place: str,
    settings: Settings,
    known: SemanticIdSet | None,
    workers: int,
    on_progress: Callable[[int], None],
) -> Generator[tuple[str, PartitionResult], None, None]:
    # Fresh processes rather than forks: the caller may have threads, and a worker imports little.
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Event()
    executor = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(done, stop, known))
    waiting = deque(enumerate(partitions))
    running: deque[Future[tuple[str, PartitionResult]]] = deque()
    reported = 0
    try:
        while waiting or running:
            while waiting and len(running) < 2 * workers:  # enough in the queue that no worker waits for a slow one
                number, partition = waiting.popleft()
                with _interrupts_blocked():  # inherited by a new process: only this one handles Ctrl-C
                    running.append(executor.submit(_work, partition, place, part_name(number), settings))
            finished = wait([running[0]], timeout=REFRESH_SECONDS).done
            on_progress(-reported + (reported := done.value))
            if finished:
                yield running.popleft().result()
    except BrokenProcessPool:
        raise WorkerDied(
            "a worker process was killed, perhaps because memory ran out; nothing was written; try fewer --workers"
        ) from None
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Stopped(Exception):
    """The caller does not need the result any more."""


# In a worker process: the counter of bytes done, the event that stops its work, the semantic IDs of the catalogue.
_shared: tuple[Any, Any, SemanticIdSet | None]


def _start_worker(done: Any, stop: Any, known: SemanticIdSet | None) -> None:
    global _shared
    _shared = done, stop, known
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Ends this worker when its parent is killed; otherwise it would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_any([parent.sentinel])
    os._exit(1)


def _work(partition: Partition, place: str, part: str, settings: Settings) -> tuple[str, PartitionResult]:
    with new_part(place, part) as folder:
        return part, convert_partition(partition, folder, settings, _shared[2], _count_bytes)


def _count_bytes(new: int) -> None:
    done, stop, _ = _shared
    if stop.is_set():
        raise _Stopped
    with done.get_lock():
        done.value += new
