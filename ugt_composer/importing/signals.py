"""What interactions say beside their items: actions, from ratings and a column of actions, and times in seconds.

N interactions. Names of actions and the bounds of ratings come from training interactions only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ugt_composer.data.codec import LARGEST_TIME
from ugt_composer.importing.interactions import Interactions
from ugt_composer.importing.log import Log
from ugt_composer.importing.ratings import Ratings, ratings_of
from ugt_composer.importing.time_units import PER_SECOND

SIGNALS = ALL, ACTIONS, TIMES, NONE = ("all", "actions", "times", "none")  # what --signals writes
MOST_VALUES = 10  # so many different ratings have an action each; if there are more, they share MOST_RANGES of them
MOST_RANGES = 5


@dataclass(frozen=True)
class Seen:
    """What training interactions in histories have.

    Attributes:
        ratings: of them.
        names: of their actions.
        pairs: name, "" without one, and rating, NaN without one, of each interaction; every pair once.
    """

    ratings: Ratings
    names: frozenset[str]
    pairs: pl.DataFrame

    def __add__(self, other: "Seen") -> "Seen":
        pairs = pl.concat([self.pairs, other.pairs]).unique()
        return Seen(self.ratings + other.ratings, self.names | other.names, pairs)


@dataclass(frozen=True)
class Actions:
    """The actions of rows: ratings, actions by name, or both (`click (rated 4)`).

    Attributes:
        names: the actions; the id of an action is its place in the list, from 1.
        between: float64, ascending: ratings above the first are of the second range of ratings, and so on.
        rated: whether any rating is known.
        named: the names of actions that are known, "" first.
        number: uint16 ((number of `named` + 1) · (number of ranges + 1),): the id of each pair of both; 0: none has it.
    """

    names: tuple[str, ...]
    between: np.ndarray
    rated: bool
    named: tuple[str, ...]
    number: np.ndarray

    def of(self, log: Interactions) -> np.ndarray:
        """uint16 (N,) the action's id of each interaction; 0: it has none, or one that no training interaction has."""
        names = _places(log.action, self.named, len(log))
        ranges = _ranges(log.rating, self.between, len(log)) if self.rated else 0
        return self.number[names.astype(np.int32) * (len(self.between) + 1 + self.rated) + ranges]


def seen_signals(log: Interactions, trained: np.ndarray) -> Seen:
    """Args:
    trained: bool (N,): the training interactions in histories.
    """
    count = int(trained.sum())
    rating = np.full(count, np.float32("nan")) if log.rating is None else log.rating[trained]
    action = pl.Series([""], dtype=pl.String).new_from_index(0, count)
    if log.action is not None:
        action = log.action.filter(pl.Series(trained)).cast(pl.String).fill_null("")
    pairs = pl.DataFrame({"name": action, "rating": rating}).unique()
    return Seen(ratings_of(rating), frozenset(pairs["name"]) - {""}, pairs)


def learned_actions(seen: Seen) -> Actions | None:
    """The actions of all interactions; None if all have the same one."""
    rated, between = _named_ranges(seen.ratings)
    named, pairs = ("", *sorted(seen.names)), seen.pairs
    width = len(rated) + 1
    ranges = _ranges(pairs["rating"].to_numpy(), between, len(pairs)) if rated else np.zeros(len(pairs), np.int32)
    known = np.unique(_places(pairs["name"], named, len(pairs)).astype(np.int32) * width + ranges)
    if len(known) < 2:
        return None
    known = known[known > 0]
    both = [divmod(at, width) for at in known.tolist()]
    names = tuple(_joined(named[of_name], ["", *rated][of_rated]) for of_name, of_rated in both)
    number = np.zeros((len(named) + 1) * width, np.uint16)
    number[known] = np.arange(1, len(known) + 1)
    return Actions(names, between, bool(rated), named, number)


def _joined(action: str, rating: str) -> str:
    """Without a comma, which separates names in messages."""
    return f"{action} ({rating})" if action and rating else action or rating


def _named_ranges(ratings: Ratings) -> tuple[list[str], np.ndarray]:
    """The names of ranges of ratings, ascending, and the ratings between them; none if no rating is known."""
    values = ratings.values
    if not len(values):
        return [], np.zeros(0)
    lowest = values if len(values) <= MOST_VALUES else _lowest_of_ranges(values, ratings.counts)
    highest = values[np.append(np.searchsorted(values, lowest[1:]), len(values)) - 1]
    # Ratings between two ranges, which no training interaction has, belong to the nearer one.
    between = (highest[:-1].astype(float) + lowest[1:]) / 2
    names = [
        _written(low) if low == high else f"{_written(low)}–{_written(high)}"
        for low, high in zip(lowest, highest, strict=True)
    ]
    return [f"rated {name}" for name in names], between


def _ranges(rating: np.ndarray | None, between: np.ndarray, count: int) -> np.ndarray:
    """uint8 (N,) the range of each rating from 1; 0: not rated."""
    if rating is None:
        return np.zeros(count, np.uint8)
    return np.where(np.isnan(rating), 0, np.searchsorted(between, rating) + 1).astype(np.uint8)


def _lowest_of_ranges(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Where MOST_RANGES ranges of about equally many ratings begin: ascending, different.

    Args:
        values, counts: (n,) different ratings, ascending, and how often each occurs.
    """
    ends = np.cumsum(counts)
    lowest, start, total = [], 0, int(ends[-1])
    for left in range(MOST_RANGES, 0, -1):
        lowest.append(values[np.searchsorted(ends, start, side="right")])
        end = start + -(-(total - start) // left)
        at = int(np.searchsorted(ends, end - 1, side="right"))  # the rating that the range would end in
        before, after = int(ends[at] - counts[at]), int(ends[at])
        start = before if before > start and end - before < after - end else after
        if start == total:
            break
    return np.array(lowest)


def _places(action: pl.Series | None, named: Sequence[str], count: int) -> np.ndarray:
    """uint16 (N,) the place of each action's name in the list, 0 if it is not in it."""
    if action is None:
        return np.zeros(count, np.uint16)
    place = action.cast(pl.String).replace_strict(named, range(len(named)), default=0, return_dtype=pl.UInt16)
    return place.to_numpy()


def _written(rating: np.float32) -> str:
    return np.format_float_positional(rating, trim="-")


def why_no_seconds(log: Log, one_time: bool) -> str:
    """Why the times of interactions cannot be written; empty if they can.

    Args:
        one_time: all times are the same.
    """
    if log.time_form is None:
        return "only the order is known"
    if log.time_form.unit is None:
        return log.time_form.description
    return "all are the same" if one_time else ""


def seconds_of(time: np.ndarray, unit: str) -> np.ndarray:
    """uint32 (N,) seconds since 1970, rounded down, from 0 to LARGEST_TIME, of times (N,) in a unit."""
    return np.clip(time // int(PER_SECOND[unit]), 0, LARGEST_TIME).astype(np.uint32)


def count_clipped_times(time: np.ndarray, unit: str) -> int:
    """How many times (N,) are not between those that rows can hold."""
    return int((time // int(PER_SECOND[unit]) != seconds_of(time, unit)).sum())


def about_clipped_times(outside: int, count: int, place: str) -> tuple[str, ...]:
    """A warning if some of all times are not between those that rows can hold."""
    if not outside:
        return ()
    return (
        f"{place}: {outside:,} of {count:,} times are before 1970 or after 2106; rows have the nearest time that "
        "they can hold instead, so no time passes between such interactions. Move all times by the same amount, or "
        "leave them out of the rows with --signals actions (or none)",
    )
