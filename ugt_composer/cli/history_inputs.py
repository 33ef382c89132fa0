"""The actions and times of a history that names its items: `actions`, `times` and `now` beside `items`."""

from collections.abc import Sequence
from typing import Any

from ugt_composer.conversion.actions_and_times import check_order, read_times, seconds
from ugt_composer.conversion.row_values import bad_integer, list_of, same_length
from ugt_composer.conversion.settings import Settings
from ugt_composer.errors import nearest
from ugt_composer.jsonl.bad_row import BadRow, shown
from ugt_composer.jsonl.schema import DECODER_TIMES, ENCODER_ACTIONS, ENCODER_TIMES

ITEMS, ACTIONS, TIMES, NOW = "items", "actions", "times", "now"
KEYS = {ENCODER_ACTIONS: ACTIONS, ENCODER_TIMES: TIMES, DECODER_TIMES: NOW}


def take_now(user: dict[str, Any]) -> dict[str, list[int]]:
    """Removes the moment of prediction from a history's object; returns it under the key of a recommend row."""
    return {DECODER_TIMES: [seconds(user.pop(NOW), NOW)]} if NOW in user else {}


def take_inputs(
    user: dict[str, Any], is_known: Sequence[bool], names: Sequence[str], settings: Settings
) -> dict[str, list[int]]:
    """Removes actions and times from a history's object; returns those of its known items under the keys of a recommend
    row, whose first token is the user's.

    Args:
        is_known: for each item, whether it is in the catalogue.
        names: of the actions 1, 2, …, which may stand for their numbers.
    """
    row: dict[str, list[int]] = {}
    if ACTIONS in user:
        values = list_of(user.pop(ACTIONS), ACTIONS, "actions")
        same_length(ACTIONS, values, ITEMS, is_known)
        actions = [_action(value, f"{ACTIONS}[{at}]", names, settings) for at, value in enumerate(values)]
        row[ENCODER_ACTIONS] = [0, *_known(actions, is_known)]
    if TIMES in user:
        times = read_times(user.pop(TIMES), TIMES)
        same_length(TIMES, times, ITEMS, is_known)
        check_order(times, TIMES, [True] * len(times))
        row[ENCODER_TIMES] = [0, *_known(times, is_known)]
    return row


def _known(values: Sequence[int], is_known: Sequence[bool]) -> list[int]:
    return [value for value, known in zip(values, is_known, strict=True) if known]


def _action(value: Any, name: str, names: Sequence[str], settings: Settings) -> int:
    """The number of an action that is given by its name or number."""
    if isinstance(value, str):
        if value not in names:
            expected = f"an action ({nearest(value, list(names))})" if names else "a number: the model has no names"
            raise BadRow(name, "unknown action", shown(value), expected)
        return names.index(value) + 1
    if type(value) is not int or not 0 <= value <= settings.largest_action:
        raise bad_integer(value, name, settings.largest_action + 1, "an action")
    return value
