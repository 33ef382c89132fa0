"""The names of the rows' actions: in the file that --actions names, or in one beside the rows.

A list of names in JSON; action 1 is the first, 0 means that the action is not known. The folder of shards records them.
"""

import json
from collections.abc import Sequence

from ugt_composer.data.codec import LARGEST_ACTION
from ugt_composer.errors import UserError
from ugt_composer.jsonl.bad_row import shown
from ugt_composer.jsonl.schema import ACTIONS_NAME
from ugt_composer.jsonl.sources import Source, files_beside
from ugt_composer.storage.remote_files import InputFile, named_file

NO_NAMES = "none"  # --actions none


def action_names(option: str | None, sources: Sequence[Source]) -> tuple[tuple[str, ...] | None, str | None]:
    """The names, and a warning about files beside the input that are not used; None where there is none.

    Args:
        option: as typed by the user: a file, or "none"; None looks beside the input.

    Raises:
        UserError: the file that the option names is no list of names.
    """
    if option == NO_NAMES:
        return None, None
    if option is not None:
        try:
            return read_action_names(named_file(option)), None
        except UserError as error:
            raise UserError(f"--actions {error}") from None
    found = files_beside(sources, ACTIONS_NAME)
    try:
        names = {read_action_names(path): path for path in found}
    except UserError as error:
        return None, f"{error}; the file beside the input is not used, name the right one by --actions"
    if len(names) > 1:
        files = " and ".join(map(str, list(names.values())[:2]))
        return None, f"{files} differ, so actions have no names; name one of them by --actions"
    return next(iter(names), None), None


def read_action_names(path: InputFile) -> tuple[str, ...]:
    """Raises UserError unless the file is a list of different names in JSON."""
    try:
        with path.open("rb") as file:
            names = json.loads(file.read().decode())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a list of the actions' names in JSON") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); expected a list of the actions' names") from None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f'{path}: found {shown(names)}, expected a list of names, such as ["view", "buy"]')
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: found {shown(twice)} twice, expected each action's name once")
    if len(names) > LARGEST_ACTION:
        raise UserError(f"{path}: found {len(names):,} names, expected at most {LARGEST_ACTION:,}")
    return tuple(names)
