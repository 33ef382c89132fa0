"""What a run takes from a store when it starts: its own checkpoint, and the models that it begins with. Collectives."""

import logging
from pathlib import Path

from composer.utils import dist

from ugt_composer.checkpoint.rank0_errors import save_on_rank_0
from ugt_composer.checkpoint.remote import fetch_newest, model_folder, set_stored_aside
from ugt_composer.checkpoint.uploads import Uploads
from ugt_composer.config.schema import Config
from ugt_composer.errors import RunError, UserError
from ugt_composer.storage.s3 import Store
from ugt_composer.storage.s3_url import is_url

log = logging.getLogger(__name__)


def open_store(config: Config) -> Uploads | None:
    """Fetches what the store has newer than the save folder, or moves it aside without autoresume.

    Returns:
        On rank 0 what copies the save folder to the store; None on the others and without `checkpoint.remote`.

    Raises:
        RunError: on every rank, where the store does not answer.
        UserError: on every rank, where there are checkpoints and none is valid.
    """
    if config.checkpoint.remote is None:
        return None
    store, folder, damaged = Store(config.checkpoint.remote), Path(config.save_folder), set[str]()

    def begin() -> None:
        if config.autoresume:
            damaged.update(fetch_newest(store, folder))
        elif (aside := set_stored_aside(store)) is not None:
            log.warning("autoresume is false: what an earlier run left in %s was moved to %s", store.url, aside)

    save_on_rank_0(folder, begin)
    keep = config.save_num_checkpoints_to_keep
    return Uploads(store, folder, keep, damaged) if dist.get_global_rank() == 0 else None


def on_this_machine(place: str) -> Path:
    """The folder of a portable model; one in a store is fetched by one rank of each machine.

    Raises:
        UserError, RunError: on every rank, where a machine cannot have it.
    """
    if not is_url(place):
        return Path(place)
    own: list[Path] = []
    problems: list[UserError | RunError] = []
    if dist.get_local_rank() == 0:
        try:
            own.append(model_folder(place))
        except UserError as error:
            problems.append(error)
        except RunError as error:
            problems.append(RunError(str(error)))
    found: list[Path] = []
    for folders, wrong in dist.all_gather_object((own, problems)):
        for problem in wrong:
            raise problem
        found += folders
    if len({folder.name for folder in found}) > 1:
        raise RunError(f"{place} was replaced while it was fetched: start the run again")
    return found[dist.get_node_rank()]
