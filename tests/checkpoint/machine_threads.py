"""Threads of one process as the ranks of a job, one on each machine: their collectives exchange objects in memory."""

import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from composer.utils import dist

TIMEOUT = 60  # seconds


class MachineThreads:
    """Replaces Composer's functions about ranks, and its collectives of objects, while `patch` lasts."""

    def __init__(self, patch: pytest.MonkeyPatch, count: int = 2):
        self.count = count
        self._number = threading.local()
        self._barrier = threading.Barrier(count)
        self._slots: list[bytes] = [b""] * count
        for name, function in {
            "get_world_size": lambda: count,
            "get_local_world_size": lambda: 1,
            "get_local_rank": lambda: 0,
            "get_global_rank": lambda: self._number.value,
            "get_node_rank": lambda: self._number.value,
            "barrier": self._barrier.wait,
            "all_gather_object": self._gather,
            "broadcast_object_list": self._broadcast,
        }.items():
            patch.setattr(dist, name, function)

    def _gather(self, value: Any) -> list[Any]:
        self._slots[self._number.value] = pickle.dumps(value)
        self._barrier.wait(TIMEOUT)
        values = [pickle.loads(slot) for slot in self._slots]
        self._barrier.wait(TIMEOUT)
        return values

    def _broadcast(self, box: list[Any], src: int) -> None:
        box[:] = self._gather(box)[src]

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """What `work(number)` returned, or the error that it raised, on each machine."""
        outcomes: list[Any] = [None] * self.count

        def run(number: int) -> None:
            self._number.value = number
            try:
                outcomes[number] = work(number)
            except Exception as error:
                outcomes[number] = error

        threads = [threading.Thread(target=run, args=(number,)) for number in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        return outcomes
