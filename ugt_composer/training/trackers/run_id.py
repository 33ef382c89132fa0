"""The id of a run in experiment trackers."""

import uuid
from pathlib import Path

from composer.utils import dist

from ugt_composer.checkpoint.rank0_errors import save_on_rank_0
from ugt_composer.checkpoint.save_folder import RUN_ID
from ugt_composer.checkpoint.whole_state import from_rank_0


def run_id(folder: str) -> str:
    """The id of the save folder, created by its first run and read by the runs that resume it. Rank 0 sends it to the
    other ranks, whose machines may not see its save folder. A collective.

    Raises:
        RunError: the folder cannot be written.
    """
    path = Path(folder) / RUN_ID

    def make() -> None:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(uuid.uuid4().hex)

    save_on_rank_0(folder, make)
    return from_rank_0(path.read_text() if dist.get_global_rank() == 0 else None)
