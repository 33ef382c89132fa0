"""What interactions say beside their items: actions, from ratings and a column of actions, and times in seconds.

N interactions. Names of actions and the bounds of ratings come from training interactions only.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from ugt_composer.data.codec import LARGEST_TIME
from ugt_composer.importing.interactions import Interactions
from ugt_composer.importing.time_units import PER_SECOND

SIGNALS = ALL, ACTIONS, TIMES, NONE = ("all", "actions", "times", "none")  # what --signals writes
MOST_VALUES = 10  # so many different ratings have an action each; if there are more, they share MOST_RANGES of them
MOST_RANGES = 5


@dataclass(frozen=True)
class Actions:
    """Attributes:
    names: the actions; the id of an action is its place in the list, from 1.
    number: uint16 (N,) the action's id of each interaction; 0: it has none, or one that no training interaction has.
    """

    names: tuple[str, ...]
    number: np.ndarray


def actions_of(log: Interactions, trained: np.ndarray) -> Actions | None:
    """The actions of interactions: their ratings, their actions by name, or both (`click (rated 4)`).

    Args:
        trained: bool (N,): the training interactions in histories.

    Returns:
        None if all training interactions have the same one.
    """
    rated, of_rating = _ratings(log.rating, trained)
    named, of_action = _names(log.action, trained)
    key = of_action.astype(np.int32) * (len(rated) + 1) + of_rating
    known = np.unique(key[trained])
    if len(known) < 2:
        return None
    known = known[known > 0]
    parts = [divmod(at, len(rated) + 1) for at in known.tolist()]
    names = [_joined(named[of_name], ["", *rated][of_rated]) for of_name, of_rated in parts]
    number = np.zeros((len(named) + 1) * (len(rated) + 1), np.uint16)
    number[known] = np.arange(1, len(known) + 1)
    return Actions(tuple(names), number[key])


def _joined(action: str, rating: str) -> str:
    """Without a comma, which separates names in messages."""
    return f"{action} ({rating})" if action and rating else action or rating


def _ratings(rating: np.ndarray | None, trained: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The names of ranges of ratings, in ascending order, and (N,) the range of each rating from 1; 0: not rated."""
    known = np.zeros(0, np.float32) if rating is None else np.sort(rating[trained])
    known = known[: np.searchsorted(known, np.nan)]  # NaN sorts last
    if rating is None or not len(known):
        return [], np.zeros(len(trained), np.uint8)
    values = np.unique(known)
    lowest = values if len(values) <= MOST_VALUES else _lowest_of_ranges(known)
    highest = values[np.append(np.searchsorted(values, lowest[1:]), len(values)) - 1]
    # Ratings between two ranges, which no training interaction has, belong to the nearer one.
    between = (highest[:-1].astype(float) + lowest[1:]) / 2
    number = np.where(np.isnan(rating), 0, np.searchsorted(between, rating) + 1)
    names = [
        _written(low) if low == high else f"{_written(low)}–{_written(high)}"
        for low, high in zip(lowest, highest, strict=True)
    ]
    return [f"rated {name}" for name in names], number.astype(np.uint8)


def _lowest_of_ranges(ratings: np.ndarray) -> np.ndarray:
    """Where MOST_RANGES ranges of about equally many ratings begin: ascending ratings (n,) → ascending, different.

    Equal ratings stay together.
    """
    lowest, start = [], 0
    for left in range(MOST_RANGES, 0, -1):
        lowest.append(ratings[start])
        end = start + -(-(len(ratings) - start) // left)
        before, after = (int(np.searchsorted(ratings, ratings[end - 1], side)) for side in ("left", "right"))
        start = before if before > start and end - before < after - end else after
        if start == len(ratings):
            break
    return np.array(lowest)


def _names(action: pl.Series | None, trained: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The names of actions in alphabetical order, "" first; and (N,) the place of each one's name in that list."""
    if action is None:
        return [""], np.zeros(len(trained), np.uint8)
    names = ["", *sorted(action.filter(pl.Series(trained)).drop_nulls().unique().cast(pl.String))]
    place = action.cast(pl.String).replace_strict(names, range(len(names)), default=0, return_dtype=pl.UInt16)
    return names, place.to_numpy()


def _written(rating: np.float32) -> str:
    return np.format_float_positional(rating, trim="-")


def seconds_of(log: Interactions) -> tuple[np.ndarray | None, str]:
    """uint32 (N,) seconds since 1970, rounded down, from 0 to LARGEST_TIME; or None, and why there are none."""
    if log.time is None or log.time_form is None:
        return None, "only the order is known"
    if log.time_form.unit is None:
        return None, log.time_form.description
    if log.time.min() == log.time.max():
        return None, "all are the same"
    seconds = log.time // int(PER_SECOND[log.time_form.unit])
    return np.clip(seconds, 0, LARGEST_TIME).astype(np.uint32), ""


def about_clipped_times(log: Interactions, seconds: np.ndarray | None, place: str) -> tuple[str, ...]:
    """A warning if times are not between those that rows can hold.

    Args:
        seconds: what `seconds_of` returned.
    """
    if seconds is None or log.time is None or log.time_form is None or log.time_form.unit is None:
        return ()
    exact = log.time // int(PER_SECOND[log.time_form.unit])
    outside = int((exact != seconds).sum())
    if not outside:
        return ()
    return (
        f"{place}: {outside:,} of {len(log):,} times are before 1970 or after 2106; rows have the nearest time that "
        "they can hold instead, so no time passes between such interactions. Move all times by the same amount, or "
        "leave them out of the rows with --signals actions (or none)",
    )
