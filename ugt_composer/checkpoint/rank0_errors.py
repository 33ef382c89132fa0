"""What a run does when its save folder is full, read-only or gone: every rank ends, with one sentence."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from composer.utils import dist

from ugt_composer.checkpoint.run_checkpoints import newest_of_recorded_size
from ugt_composer.checkpoint.whole_state import from_rank_0
from ugt_composer.errors import RunError, UserError


@contextmanager
def saving_into(folder: str | Path) -> Iterator[None]:
    """
    Raises:
        RunError: for an OSError in the block, naming the folder, the reason and the checkpoint to go on from.
    """
    try:
        yield
    except OSError as error:
        raise cannot_save(folder, error.strerror or str(error)) from None


def cannot_save(folder: str | Path, reason: str) -> RunError:
    good = newest_of_recorded_size(folder)
    left = "no good checkpoint is in it"
    if good is not None:
        left = (
            f"the newest good checkpoint in it is {good.name}; make it writable and the same command goes on from there"
        )
    return RunError(f"{folder} cannot be written ({reason}): {left}")


def save_on_rank_0(folder: str | Path, write: Callable[[], None]) -> None:
    """Calls `write` on rank 0. A collective: what fails there ends every rank, and none waits for it.

    Raises:
        RunError: on all ranks, as of `saving_into`. Any other error is raised on rank 0 as it is; a UserError is one
            on all ranks.
    """
    failure: Exception | None = None
    if dist.get_global_rank() == 0:
        try:
            with saving_into(folder):
                write()
        except Exception as error:
            failure = error
    told = from_rank_0(None if failure is None else (isinstance(failure, UserError), str(failure)))
    if failure is not None:
        raise failure
    if told is not None:
        raise (UserError if told[0] else RunError)(told[1])
