"""What the configuration says together with the number of ranks."""

from ugt_composer.config.schema import Config
from ugt_composer.errors import UserError


def device_batch_size(config: Config, world_size: int) -> int:
    """Rows a rank takes of a global batch. UserError where they do not divide over the ranks."""
    if config.global_train_batch_size % world_size:
        raise UserError(
            f"global_train_batch_size is {config.global_train_batch_size}; expected a multiple of {world_size} ranks"
        )
    return config.global_train_batch_size // world_size
