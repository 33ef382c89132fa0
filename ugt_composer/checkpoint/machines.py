"""Which machines of a job see the same save folder: one that all share, or a folder of its own on each machine."""

import secrets
from dataclasses import dataclass
from pathlib import Path

from composer.utils import dist

from ugt_composer.checkpoint.whole_state import from_rank_0


@dataclass(frozen=True)
class Machines:
    """
    Attributes:
        number: of this rank's machine, from 0.
        count: machines of the job.
        sharing: numbers of the machines that see this machine's save folder, itself included, ascending.
        are_separate: whether the machines of the job have more than one save folder.
    """

    number: int = 0
    count: int = 1
    sharing: tuple[int, ...] = (0,)
    are_separate: bool = False

    @property
    def is_leader(self) -> bool:
        """Whether this rank is the one that creates, renames and deletes checkpoints in its folder."""
        return dist.get_local_rank() == 0 and self.number == self.sharing[0]

    @property
    def ranks(self) -> list[int]:
        """The ranks that see this rank's folder."""
        local = dist.get_local_world_size()
        return [machine * local + rank for machine in self.sharing for rank in range(local)]


ONE_MACHINE = Machines()


def find_machines(folder: Path) -> Machines:
    """One rank of each machine creates a file of a new name in the folder, and looks for the others'. A collective.

    Raises:
        OSError: the folder cannot be written.
    """
    local = dist.get_local_world_size()
    count = dist.get_world_size() // local
    if count == 1:
        return ONE_MACHINE
    number = dist.get_global_rank() // local
    token = from_rank_0(secrets.token_hex(8))
    paths = [folder / f".machine-{machine}-{token}" for machine in range(count)]
    if dist.get_local_rank() == 0:
        paths[number].touch()
    dist.barrier()
    sharing = tuple(machine for machine, path in enumerate(paths) if path.exists())
    dist.barrier()
    if dist.get_local_rank() == 0:
        paths[number].unlink()
    are_separate = any(len(seen) < count for seen in dist.all_gather_object(sharing))
    return Machines(number, count, sharing, are_separate)
