"""Errors of a save folder that is full, read-only or gone end every rank, with a message of one sentence."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from composer.utils import dist

from ugt_composer.checkpoint.machines import Machines
from ugt_composer.checkpoint.run_checkpoints import newest_of_recorded_size
from ugt_composer.checkpoint.whole_state import from_rank_0
from ugt_composer.errors import RunError, UserError


@contextmanager
def saving_into(folder: str | Path) -> Iterator[None]:
    """
    Raises:
        RunError: for an OSError in the block, naming the folder, the reason and the checkpoint to resume from.
    """
    try:
        yield
    except OSError as error:
        raise cannot_save(folder, error.strerror or str(error)) from None


def cannot_save(folder: str | Path, reason: str) -> RunError:
    newest = newest_of_recorded_size(folder)
    hint = "it contains no valid checkpoint"
    if newest is not None:
        hint = f"its newest valid checkpoint is {newest.name}; make it writable and run the same command to resume"
    return RunError(f"{folder} cannot be written ({reason}): {hint}")


def save_on_rank_0(folder: str | Path, write: Callable[[], None]) -> None:
    """Calls `write` on rank 0. A collective: an error there is raised on every rank, so that none waits for rank 0.

    Raises:
        RunError: on all ranks for an OSError, as in `saving_into`; on the other ranks also for any other error, which
            rank 0 raises unchanged.
        UserError: on all ranks, if `write` raised one.
    """
    failure: Exception | None = None
    if dist.get_global_rank() == 0:
        try:
            with saving_into(folder):
                write()
        except Exception as error:
            failure = error
    rank_0_failure = from_rank_0(None if failure is None else (isinstance(failure, UserError), str(failure)))
    if failure is not None:
        raise failure
    if rank_0_failure is not None:
        is_user_error, message = rank_0_failure
        raise (UserError if is_user_error else RunError)(message)


def save_on_leaders(folder: str | Path, machines: Machines, write: Callable[[], None]) -> None:
    """Calls `write` on one rank for each save folder of the job. A collective: an error is raised on every rank.

    Raises:
        RunError, UserError: as in `save_on_rank_0`.
    """
    failure: Exception | None = None
    if machines.is_leader:
        try:
            with saving_into(folder):
                write()
        except Exception as error:
            failure = error
    reported = None if failure is None else (isinstance(failure, UserError), str(failure))
    failures = dist.all_gather_object(reported)
    if failure is not None:
        raise failure
    for is_user_error, message in filter(None, failures):
        raise (UserError if is_user_error else RunError)(message)
