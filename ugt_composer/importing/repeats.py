"""Rows that occur twice, and items that a user chose again.

P interactions are grouped by user, oldest first: `user`, `item` int (P,).
"""

import numpy as np
import polars as pl

from ugt_composer.importing.interactions import Interactions
from ugt_composer.importing.log import Census, Log
from ugt_composer.importing.splits import user_offsets

KEEP, FIRST, LAST = "keep", "first", "last"
MANY_ADJACENT = 0.25  # fraction of rows that equal the row before: above it, all were probably written twice
MANY_DOUBLED = 0.5  # fraction of users whose rows are the same in both halves


def exact_duplicates(log: Interactions) -> np.ndarray:
    """bool (N,): whether an earlier row has the same user, item, time, rating and action. The log has times."""
    assert log.time is not None
    duplicate = np.zeros(len(log), bool)
    same = (log.user[1:] == log.user[:-1]) & (log.time[1:] == log.time[:-1])
    if not same.any():
        return duplicate
    tied = np.concatenate([same, [False]]) | np.concatenate([[False], same])
    at = np.flatnonzero(tied)
    moment = np.cumsum(~np.concatenate([[False], same]))[at]
    columns = {"moment": moment, "item": log.item[at]}
    if log.rating is not None:
        columns["rating"] = log.rating[at]
    table = pl.DataFrame(columns)
    if log.action is not None:
        table = table.with_columns(log.action.gather(at).alias("action"))
    first = table.with_row_index("row").unique(table.columns, keep="first")["row"].to_numpy()
    duplicate[at] = True
    duplicate[at[first]] = False
    return duplicate


def about_untimed_duplicates(log: Log, counts: Census) -> str | None:
    """A warning if the rows of a file without times, or with one time, seem to be written twice."""
    if counts.rows < 2:
        return None
    equal, doubled = log.partitions.sum(_count_doubled).tolist()
    if equal > MANY_ADJACENT * counts.rows:
        return (
            f"{equal:,} of {counts.rows:,} rows have the same user and item as the row before; if these are no "
            "repeats but the file has its rows twice, remove them, or give --repeats first"
        )
    if doubled > MANY_DOUBLED * counts.users:
        return (
            f"{doubled:,} of {counts.users:,} users have the same items twice in the same order; if the file was "
            "appended to itself, remove the second half, or give --repeats first"
        )
    return None


def _count_doubled(log: Interactions) -> np.ndarray:
    """int64 (2,): how many rows have the user and item of the row before, and how many users have equal halves."""
    equal = int(((log.user[1:] == log.user[:-1]) & (log.item[1:] == log.item[:-1])).sum())
    offsets = user_offsets(log.user, len(log.users))
    counts = np.diff(offsets)
    half = counts[log.user] // 2
    place = np.arange(len(log)) - offsets[log.user]
    in_first = (place < half) & (counts[log.user] % 2 == 0)
    at = np.flatnonzero(in_first)
    differs = np.zeros(len(counts), bool)
    differs[log.user[at[log.item[at] != log.item[at + half[at]]]]] = True
    return np.array([equal, ((counts >= 4) & (counts % 2 == 0) & ~differs).sum()])


def previous_occurrence(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """int64 (P,): the latest earlier interaction of the same user with the same item; −1 if there is none."""
    previous = np.full(len(user), -1, np.int64)
    key = user.astype(np.int64) * (int(item.max(initial=0)) + 1) + item
    order = np.argsort(key, kind="stable")
    again = np.flatnonzero(key[order[1:]] == key[order[:-1]])
    previous[order[again + 1]] = order[again]
    return previous


def kept_repeats(previous: np.ndarray, which: str) -> np.ndarray:
    """bool (P,): the interactions that --repeats keeps: all, each user's first or last one with an item."""
    if which == KEEP:
        return np.ones(len(previous), bool)
    if which == FIRST:
        return previous < 0
    kept = np.ones(len(previous), bool)
    kept[previous[previous >= 0]] = False
    return kept
