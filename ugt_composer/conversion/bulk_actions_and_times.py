"""Checks the actions and times of many rows at once: the vectorised counterpart of `actions_and_times.py`.

Shapes: R rows, n tokens of all rows together; columns have n + R slots (see `columns.py`).
"""

from dataclasses import dataclass

import numpy as np

from ugt_composer.conversion.actions_and_times import NO_TIME
from ugt_composer.conversion.bulk_parse import ParsedRows
from ugt_composer.conversion.columns import END, IrregularRows, RawLists, read_integers, read_seconds
from ugt_composer.conversion.settings import Settings
from ugt_composer.data.codec import LARGEST_TIME, UNKNOWN_TIME
from ugt_composer.vocabulary import USER


@dataclass
class HistoryInputs:
    """The actions and times of R histories.

    Attributes:
        actions: int64 (n + R,), or None if no row has them.
        times: int64 (n + R,) seconds, -1 for user tokens, or None if no row has them.
        latest: int64 (R,), the time of each row's last event, -1 if there is none.
    """

    actions: np.ndarray | None
    times: np.ndarray | None
    latest: np.ndarray

    def kept(self, mask: np.ndarray) -> "HistoryInputs":
        """Only those of the tokens whose mask, (n + R,), is True."""
        actions = None if self.actions is None else self.actions[mask]
        return HistoryInputs(actions, None if self.times is None else self.times[mask], self.latest)


def read_history_inputs(
    parsed: ParsedRows, mask: np.ndarray, token_types: np.ndarray, ends: np.ndarray, settings: Settings
) -> HistoryInputs:
    """Args are those of the encoder's `Side`, before histories are cut. Raises IrregularRows unless all is valid."""
    actions = times = None
    latest = np.full(len(ends), NO_TIME)
    if parsed.actions:
        (actions,) = read_integers([parsed.actions])
        _check_slots(actions, ends, settings.largest_action)
    if parsed.times:
        (times,) = read_seconds([parsed.times])
        _check_slots(times, ends, LARGEST_TIME)
        rows, values = _in_order(times, mask & (token_types != USER), ends)
        latest[rows] = values  # of a row's events, the last one is kept
        times = np.where(token_types == USER, UNKNOWN_TIME, times)
    return HistoryInputs(actions, times, latest)


def read_target_times(lists: RawLists, counted: np.ndarray, ends: np.ndarray, latest: np.ndarray) -> np.ndarray:
    """int64 (n + R,) seconds.

    Args:
        counted: bool (n + R,), True for targets.
        ends: (R,) the extra slots of the decoder's columns.
        latest: (R,) the time of each history's last event.
    """
    (times,) = read_seconds([lists])
    _check_slots(times, ends, LARGEST_TIME)
    rows, values = _in_order(times, counted, ends)
    if (values < latest[rows]).any():
        raise IrregularRows
    return times


def read_choice_times(values: RawLists, latest: np.ndarray) -> np.ndarray:
    """int64 (R,) seconds, of preference rows, whose times are numbers or lists of one."""
    lists = [value if value[:1] == b"[" else b"[%b]" % value for value in map(bytes, values)]
    ends = 2 * np.arange(len(lists)) + 1
    (times,) = read_seconds([lists])
    _check_slots(times, ends, LARGEST_TIME)
    times = times[ends - 1]
    if (times < latest).any():
        raise IrregularRows
    return times


def stored_times(times: np.ndarray) -> np.ndarray:
    """uint32, as the codec stores them."""
    return times.astype("<u4")  # -1 becomes the largest one


def _check_slots(values: np.ndarray, ends: np.ndarray, largest: int) -> None:
    """Lists are as long as the ids', whose extra slots are `ends`, and values are in 0..largest."""
    if not np.array_equal(np.flatnonzero(values == END), ends) or values.min() < END or values.max() > largest:
        raise IrregularRows


def _in_order(times: np.ndarray, counted: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows and the times of the counted slots, in which no row's times decrease."""
    rows, values = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=-1))[counted], times[counted]
    if ((np.diff(values) < 0) & (np.diff(rows) == 0)).any():
        raise IrregularRows
    return rows, values
