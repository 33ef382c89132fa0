"""Runs the partitions in this process or in several, and yields their results in input order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Any

from ugt_composer.catalogue.id_set import SemanticIdSet
from ugt_composer.conversion.partition import PartitionResult, convert_partition
from ugt_composer.conversion.settings import Settings
from ugt_composer.jsonl.sources import Partition

REFRESH_SECONDS = 0.1


class WorkerDied(RuntimeError):
    """A worker process ended without a result; most likely the system killed it because memory ran out."""


def part_folder(work: Path, number: int) -> Path:
    return work / f"part-{number:08}"


def run_partitions(
    partitions: Sequence[Partition],
    work: Path,
    settings: Settings,
    known: SemanticIdSet | None,
    workers: int,
    on_progress: Callable[[int], None],
) -> Generator[PartitionResult, None, None]:
    """Yields the result of each partition in order; its files are in `part_folder(work, number)`.

    Args:
        work: an existing folder.
        known: the semantic IDs of the catalogue; None if items are not checked.
        on_progress: called with the input bytes done since the last call.
    """
    workers = min(workers, len(partitions))
    if workers > 1:
        yield from _run_in_processes(partitions, work, settings, known, workers, on_progress)
        return
    for number, partition in enumerate(partitions):
        part_folder(work, number).mkdir()
        yield convert_partition(partition, part_folder(work, number), settings, known, on_progress)


def _run_in_processes(
    partitions: Sequence[Partition],
    work: Path,
    settings: Settings,
    known: SemanticIdSet | None,
    workers: int,
    on_progress: Callable[[int], None],
) -> Generator[PartitionResult, None, None]:
    # Fresh processes rather than forks: the caller may have threads, and a worker imports little.
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Event()
    executor = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(done, stop, known))
    waiting = deque(enumerate(partitions))
    running: deque[Future[PartitionResult]] = deque()
    reported = 0
    try:
        while waiting or running:
            while waiting and len(running) < 2 * workers:  # enough in the queue that no worker waits for a slow one
                number, partition = waiting.popleft()
                folder = part_folder(work, number)
                folder.mkdir()
                with _interrupts_blocked():  # inherited by a new process: only this one handles Ctrl-C
                    running.append(executor.submit(_work, partition, folder, settings))
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


def _work(partition: Partition, folder: Path, settings: Settings) -> PartitionResult:
    return convert_partition(partition, folder, settings, _shared[2], _count_bytes)


def _count_bytes(new: int) -> None:
    done, stop, _ = _shared
    if stop.is_set():
        raise _Stopped
    with done.get_lock():
        done.value += new
