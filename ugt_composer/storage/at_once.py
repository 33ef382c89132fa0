"""Runs several requests to a store at once, in daemon threads, which Python does not wait for when a process exits."""

import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = 8  # requests; boto3 keeps up to 10 connections


def for_each(items: Iterable[T], work: Callable[[T], object]) -> None:
    """Calls `work` for each item, up to AT_ONCE at the same time. After an error no further item is begun.

    Raises:
        The first error, when no call is running any more.
    """
    waiting: SimpleQueue[T] = SimpleQueue()
    for item in items:
        waiting.put(item)
    errors: list[BaseException] = []

    def run() -> None:
        while not errors:
            try:
                item = waiting.get_nowait()
            except Empty:
                return
            try:
                work(item)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(AT_ONCE, waiting.qsize()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def mapped(items: Iterable[T], work: Callable[[T], R]) -> list[R]:
    """What `work` returns for each item, in order, see `for_each`.

    Raises:
        Of several errors that of the first item.
    """
    results: dict[int, R] = {}
    errors: dict[int, Exception] = {}

    def run(numbered: tuple[int, T]) -> None:
        number, item = numbered
        try:
            results[number] = work(item)
        except Exception as error:
            errors[number] = error
            raise

    try:
        for_each(enumerate(items), run)
    except Exception:
        raise errors[min(errors)] from None
    return [results[number] for number in sorted(results)]
