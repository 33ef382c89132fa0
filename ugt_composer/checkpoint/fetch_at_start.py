"""What a run downloads from S3 when it starts: its own checkpoint, and the models to start from. Collectives."""

import logging
from functools import partial
from pathlib import Path

from composer.utils import dist

from ugt_composer.checkpoint.machines import Machines
from ugt_composer.checkpoint.rank0_errors import save_on_rank_0
from ugt_composer.checkpoint.remote import fetch_newest, model_folder, set_stored_aside
from ugt_composer.checkpoint.separate_folders import agree_on_newest
from ugt_composer.checkpoint.upload_parts import delete_reports
from ugt_composer.checkpoint.uploads import Uploads
from ugt_composer.checkpoint.whole_state import from_rank_0
from ugt_composer.config.schema import Config
from ugt_composer.errors import RunError, UserError
from ugt_composer.parallelism.strategy import Strategy
from ugt_composer.storage.s3 import Store
from ugt_composer.storage.s3_url import is_url

log = logging.getLogger(__name__)


def open_store(config: Config, machines: Machines, strategy: Strategy) -> Uploads | None:
    """Downloads the newest checkpoint if the save folder has none as new; without autoresume, moves the old ones aside.

    Machines with save folders of their own agree on the newest checkpoint that all of them can get, also without a
    store.

    Returns:
        The uploader of the save folder: on rank 0, and for sharded checkpoints on one rank of each machine. None on the
        other ranks and without `checkpoint.remote`.

    Raises:
        RunError: on every rank, if the store does not answer.
        UserError: on every rank, if there are checkpoints but none is valid.
    """
    store = None if config.checkpoint.remote is None else Store(config.checkpoint.remote)
    folder, corrupted = Path(config.save_folder), set[str]()

    def begin() -> None:
        assert store is not None
        if config.autoresume:
            corrupted.update(fetch_newest(store, folder))
        elif (aside := set_stored_aside(store)) is not None:
            log.warning("autoresume is false: the files of an earlier run in %s were moved to %s", store.url, aside)

    if config.autoresume and machines.are_separate:
        corrupted |= agree_on_newest(store, folder, machines, strategy)
    elif store is not None:
        save_on_rank_0(folder, begin)
    if store is None:
        return None
    corrupted = from_rank_0(corrupted)
    if corrupted and machines.count > 1:  # they would say that a corrupted file need not be uploaded again
        save_on_rank_0(folder, lambda: delete_reports(store, corrupted))
    if dist.get_local_rank() > 0 or (machines.number > 0 and not config.checkpoint.sharded):
        return None
    keep = config.save_num_checkpoints_to_keep
    return Uploads(store, folder, keep, corrupted, machines, partial(strategy.shards_read, ranks=()))


def on_this_machine(place: str) -> Path:
    """The local folder of a portable model; one rank of each machine downloads a model that is in a store.

    Raises:
        UserError, RunError: on every rank, if a machine cannot get it.
    """
    if not is_url(place):
        return Path(place)
    downloaded: list[Path] = []
    problems: list[UserError | RunError] = []
    if dist.get_local_rank() == 0:
        try:
            downloaded.append(model_folder(place))
        except UserError as error:
            problems.append(error)
        except RunError as error:
            problems.append(RunError(str(error)))
    folders: list[Path] = []  # one for each machine
    for rank_folders, rank_problems in dist.all_gather_object((downloaded, problems)):
        for problem in rank_problems:
            raise problem
        folders += rank_folders
    if len({folder.name for folder in folders}) > 1:
        raise RunError(f"{place} was replaced while it was being downloaded: start the run again")
    return folders[dist.get_node_rank()]
