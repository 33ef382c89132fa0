"""The ranks of a program that divides its work among them: started by a launcher, or a single process."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from ugt_composer.errors import UserError
from ugt_composer.job.cpu_all_reduce import CpuAllReduce
from ugt_composer.job.exit import own_rank
from ugt_composer.job.group_timeouts import limit_groups
from ugt_composer.job.watchdog import Watchdog

START_TIMEOUT = 3600.0  # seconds that a rank waits for the others up to the end of the first step
TIMEOUT = 600.0  # the same after that
T = TypeVar("T")


def launched_ranks() -> int:
    """The number of ranks that a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Ranks:
    """This rank and the others, which work in steps: all call `step` equally often, and each reads the result of a step
    at its next one, so that they wait for each other only if one is a step behind. An error of a user's input on one
    rank is raised on all; a rank that ended or does not answer ends the others, see `job.exit`.

    They talk to each other on the CPU (gloo) only, whatever the device of the work.

    Attributes:
        number, size: of this rank, and how many there are.
        total: what the steps of all ranks added up to, as far as it is known.
    """

    def __init__(self, watchdog: Watchdog):
        self.number, self.size, self.total = own_rank(), launched_ranks(), 0
        self._watchdog = watchdog
        self._sums = CpuAllReduce(watchdog.timeout, dist.ReduceOp.SUM)
        self._has_begun = False

    @property
    def is_first(self) -> bool:
        return self.number == 0

    def step(self, amount: int = 0, error: UserError | None = None) -> None:
        """Ends a step in which this rank did `amount` of the work, or failed.

        Raises:
            UserError: this or another rank failed, in this step or the one before.
        """
        self.finish()
        self._sums.begin(amount, error is not None)
        self._has_begun = True
        self._watchdog.trained_a_batch()
        if error is not None:
            self.finish(error)

    def finish(self, error: UserError | None = None) -> None:
        """Waits for the last step of all ranks."""
        if not self._has_begun:
            return
        amount, failures = self._sums.result()
        self._has_begun = False
        self.total += int(amount)
        if failures:
            _raise_first(self.exchange(None if error is None else str(error)))

    def exchange(self, value: T) -> list[T]:
        """The values of all ranks, in their order. A collective."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        self._watchdog.progress()
        return values

    def agree(self, check: Callable[[], T]) -> T:
        """Runs a check on every rank, and raises the UserError of one on all. A collective."""
        result, message = _result_or_message(check)
        _raise_first(self.exchange(message))
        return result  # type: ignore[return-value]

    def from_first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, or the UserError that it raises, on all ranks. A collective."""
        made: list[Any] = [_result_or_message(make) if self.is_first else None]
        if self.size > 1:
            dist.broadcast_object_list(made, src=0)
            self._watchdog.progress()
        result, message = made[0]
        _raise_first([message])
        return result


def _result_or_message(make: Callable[[], T]) -> tuple[T | None, str | None]:
    try:
        return make(), None
    except UserError as error:
        return None, str(error)


def _raise_first(messages: list[str | None]) -> None:
    message = next((one for one in messages if one is not None), None)
    if message is not None:
        raise UserError(message)


@contextmanager
def joined_ranks(start_timeout: float = START_TIMEOUT, timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """Connects the ranks that a launcher started, which then stay connected. Only rank 0 logs warnings."""
    watchdog = Watchdog(start_timeout, timeout)
    if launched_ranks() > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(seconds=watchdog.timeout()))
        limit_groups(watchdog.timeout())
        if own_rank() > 0:
            logging.getLogger("ugt_composer").setLevel(logging.ERROR)
    watchdog.watch()
    try:
        yield Ranks(watchdog)
    finally:
        watchdog.close()
