"""What can be known to be wrong with a run before anything is built: the same for a dry run and a real one."""

from pathlib import Path

from ugt_composer.config import Config
from ugt_composer.data.catalogue import Catalogue
from ugt_composer.data.manifest import PREFERENCE, Manifest
from ugt_composer.errors import UserError


def check_run(config: Config) -> None:
    """UserError for a strategy that does not exist yet or a save folder that cannot be one."""
    if config.parallelism.strategy != "ddp":
        raise UserError(f"parallelism.strategy is {config.parallelism.strategy!r}; this version trains with ddp")
    for folder in (Path(config.save_folder), *Path(config.save_folder).parents):
        if folder.exists():
            if not folder.is_dir():
                raise UserError(f"save_folder {config.save_folder}: {folder} is a file; expected a folder")
            break


def check_kinds(config: Config, manifests: list[Manifest]) -> None:
    """UserError where preference rows would be trained on without a preference loss."""
    for manifest in manifests:
        if manifest.kind == PREFERENCE and config.loss.lambda_preference == 0:
            raise UserError(
                f"{manifest.folder} holds preference rows, but loss.lambda_preference is 0; expected recommend rows "
                "or stage 3"
            )


def device_batch_size(config: Config, world_size: int) -> int:
    """Rows a rank takes of a global batch. UserError where they do not divide over the ranks."""
    if config.global_train_batch_size % world_size:
        raise UserError(
            f"global_train_batch_size is {config.global_train_batch_size}; expected a multiple of {world_size} ranks"
        )
    return config.global_train_batch_size // world_size


def load_catalogue(config: Config) -> Catalogue | None:
    """The catalogue of `data.catalogue`, held against the model's codebooks; None where none is given."""
    if config.data.catalogue is None:
        return None
    catalogue = Catalogue.load(config.data.catalogue)
    catalogue.check(config.model.codebook_sizes)
    return catalogue


def about_catalogue(config: Config, catalogue: Catalogue | None) -> str | None:
    """What a user should know of it: that there is none, or that items share semantic IDs."""
    if catalogue is None:
        return "data.catalogue is not given: recommendations are not limited to items that exist"
    return f"{config.data.catalogue}: {catalogue.collisions}" if catalogue.collisions.count else None
