"""How many items of a history a trained model reads: as many as in the longest history that it was trained on."""

from collections.abc import Mapping

from ugt_composer.checkpoint.portable import LONGEST_HISTORY
from ugt_composer.config.schema import Config
from ugt_composer.errors import UserError


def history_length(config: Config, facts: Mapping[str, str], option: int | None = None) -> int | None:
    """Items of a history that a model reads, besides the user's token; None if its files do not say how long the
    histories were that it was trained on.

    Args:
        facts: of the model.
        option: overrides the config's evaluation.max_history, which overrides the model's fact.

    Raises:
        UserError: the model has no positions for so many items.
    """
    most = config.model.max_seq_len - 1
    if option is not None and option > most:
        raise UserError(f"--max-history is {option:,}; expected at most {most:,}, for which the model has positions")
    trained = int(facts[LONGEST_HISTORY]) if LONGEST_HISTORY in facts else None
    return option or config.evaluation.max_history or trained
