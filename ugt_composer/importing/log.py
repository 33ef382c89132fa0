"""The interactions of a table in partitions, and counts of all of them.

N interactions of U users with I items.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import polars as pl

from ugt_composer.importing.interactions import Interactions
from ugt_composer.importing.partitions import InMemory, Partitions
from ugt_composer.importing.timestamps import TimeForm


@dataclass(frozen=True)
class Log:
    """All interactions.

    Attributes:
        partitions: of the interactions, whose own facts about the file are not used.
        items: text (I,), in the order of their numbers.
        time_form: the format of the file's times.
        columns: role → the file's column.
        unused: the file's other columns.
        skipped, first_skipped: how many rows were left out as invalid, and what is wrong with the first one.
        warnings: sentences about the file, for the user and the report.
    """

    partitions: Partitions[Interactions]
    items: pl.Series
    time_form: TimeForm | None
    columns: dict[str, str]
    unused: tuple[str, ...] = ()
    skipped: int = 0
    first_skipped: str | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, log: Interactions) -> "Log":
        """Interactions that are in memory, as a single partition."""
        about = log.time_form, log.columns, log.unused, log.skipped, log.first_skipped, log.warnings
        return cls(InMemory(log), log.items, *about)


@dataclass(frozen=True)
class Census:
    """Counts of interactions.

    Attributes:
        rows, users: N and U.
        item_rows: int64 (I,) rows of each item.
        users_with: number of rows → users that have as many.
        busiest: the user with the most rows, the first one if there are several, and these rows.
        first_time, last_time: None without times.
    """

    rows: int
    users: int
    item_rows: np.ndarray
    users_with: Counter[int]
    busiest: tuple[str, int]
    first_time: float | None
    last_time: float | None

    def __add__(self, other: "Census") -> "Census":
        firsts = [time for time in (self.first_time, other.first_time) if time is not None]
        lasts = [time for time in (self.last_time, other.last_time) if time is not None]
        return Census(
            rows=self.rows + other.rows,
            users=self.users + other.users,
            item_rows=self.item_rows + other.item_rows,
            users_with=self.users_with + other.users_with,
            busiest=min(self.busiest, other.busiest, key=lambda pair: (-pair[1], len(pair[0].encode()), pair[0])),
            first_time=min(firsts, default=None),
            last_time=max(lasts, default=None),
        )

    @property
    def one_time(self) -> bool:
        """All interactions have the same time, or none."""
        return self.first_time == self.last_time

    @property
    def median_user_rows(self) -> float:
        rows = np.array(sorted(self.users_with))
        ends = np.cumsum([self.users_with[count] for count in rows.tolist()])
        middle = np.searchsorted(ends, [(self.users - 1) // 2, self.users // 2], side="right")
        return float(rows[middle].mean())


def census(log: Log) -> Census:
    return log.partitions.sum(_census, len(log.items))


def _census(log: Interactions, items: int) -> Census:
    rows = np.bincount(log.user, minlength=len(log.users))
    counts, users = np.unique(rows, return_counts=True)
    busiest = (log.users[int(rows.argmax())], int(rows.max())) if len(rows) else ("", 0)
    timed = log.time is not None and len(log) > 0
    return Census(
        rows=len(log),
        users=len(log.users),
        item_rows=np.bincount(log.item, minlength=items),
        users_with=Counter(dict(zip(counts.tolist(), users.tolist(), strict=True))),
        busiest=busiest,
        first_time=log.time.min().item() if timed and log.time is not None else None,
        last_time=log.time.max().item() if timed and log.time is not None else None,
    )
