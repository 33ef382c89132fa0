"""Checks the actions and times of one row; `bulk_actions_and_times.py` does the same for many rows at once.

Times are stored in whole seconds. A user token is no event: what its time is does not matter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ugt_composer.conversion.row_values import check_range, list_of, same_length
from ugt_composer.conversion.settings import Settings
from ugt_composer.data.codec import LARGEST_ACTION, LARGEST_TIME
from ugt_composer.jsonl.bad_row import BadRow, HugeNumber, shown
from ugt_composer.jsonl.schema import (
    DECODER_KEYS,
    DECODER_TIMES,
    ENCODER_ACTIONS,
    ENCODER_KEYS,
    ENCODER_TIMES,
    MASK,
    TOKEN_TYPES,
)
from ugt_composer.vocabulary import BOS, LEVELS, USER

NO_TIME = -1  # before any time


@dataclass(frozen=True)
class Inputs:
    """What a row says besides ids; None where it has no such list.

    Attributes:
        encoder_actions: S integers, as in the file.
        encoder_times: S seconds, rounded down.
        decoder_times: T seconds, rounded down; of a preference row, one.
    """

    encoder_actions: list[int] | None = None
    encoder_times: list[int] | None = None
    decoder_times: list[int] | None = None


def read_inputs(
    row: dict[str, Any],
    sequence: dict[str, Any],
    prefix: str,
    encoder: list[list[int]],
    decoder: list[list[int]] | None,
    settings: Settings,
) -> Inputs:
    """Raises BadRow for the first error in the actions and times of a row.

    Args:
        sequence: the object with the history's keys: the row itself, or a part of it that `prefix` names.
        encoder, decoder: the six lists of each side, checked; no decoder for a preference row.
    """
    actions = times = target_times = None
    latest = NO_TIME
    if ENCODER_ACTIONS in sequence:
        name = prefix + ENCODER_ACTIONS
        actions = list_of(sequence[ENCODER_ACTIONS], name)
        noun = "an action" if settings.largest_action == LARGEST_ACTION else "a named action"
        check_range(actions, name, settings.largest_action + 1, noun)
        same_length(name, actions, prefix + ENCODER_KEYS[0], encoder[0])
    if ENCODER_TIMES in sequence:
        name = prefix + ENCODER_TIMES
        times = read_times(sequence[ENCODER_TIMES], name)
        same_length(name, times, prefix + ENCODER_KEYS[0], encoder[0])
        events = zip(encoder[MASK], encoder[TOKEN_TYPES], strict=True)
        latest = check_order(times, name, [bool(mask) and token_type != USER for mask, token_type in events])
    if DECODER_TIMES in row:
        target_times = _target_times(row[DECODER_TIMES], decoder, latest)
    return Inputs(actions, times, target_times)


def read_times(value: Any, name: str) -> list[int]:
    values = list_of(value, name, "numbers")
    return [seconds(value, f"{name}[{at}]") for at, value in enumerate(values)]


def seconds(value: Any, name: str) -> int:
    if type(value) not in (int, float) or not 0 <= value < LARGEST_TIME + 1:
        reason = "out of range" if type(value) in (int, float, HugeNumber) else "wrong type"
        raise BadRow(name, reason, shown(value), f"a time in seconds (not milliseconds) in 0..{LARGEST_TIME}")
    return math.floor(value)


def check_order(times: Sequence[int], name: str, is_event: Sequence[bool]) -> int:
    """The last event's time, NO_TIME if there is none."""
    latest = NO_TIME
    for at, (time, counts) in enumerate(zip(times, is_event, strict=True)):
        if not counts:
            continue
        if time < latest:
            raise BadRow(f"{name}[{at}]", "decreasing", str(time), f"at least {latest}, the time before it")
        latest = time
    return latest


def _target_times(value: Any, decoder: list[list[int]] | None, latest: int) -> list[int]:
    if decoder is None:  # a preference row: one number, alone or in a list
        times = read_times(value, DECODER_TIMES) if isinstance(value, list) else [seconds(value, DECODER_TIMES)]
        if len(times) != 1:
            raise BadRow(DECODER_TIMES, "lengths differ", f"{len(times)} values", "1, the time of the choice")
        is_target = [True]
    else:
        times = read_times(value, DECODER_TIMES)
        same_length(DECODER_TIMES, times, DECODER_KEYS[0], decoder[0])
        ids = zip(*decoder[:LEVELS], strict=True)
        is_target = [bool(mask) and triple != (BOS,) * LEVELS for triple, mask in zip(ids, decoder[MASK], strict=True)]
    check_order(times, DECODER_TIMES, is_target)
    for at, (time, counts) in enumerate(zip(times, is_target, strict=True)):
        if counts and time < latest:
            raise BadRow(
                DECODER_TIMES if decoder is None else f"{DECODER_TIMES}[{at}]",
                "before the history",
                str(time),
                f"at least {latest}, the time of the last history token: at the moment of prediction the history would "
                "hold an item of the future",
            )
    return times
