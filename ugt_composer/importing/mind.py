"""MIND's files: behaviors.tsv, in which a row is a list of impressions of a user, and news.tsv."""

import re
from collections.abc import Sequence

import polars as pl

from ugt_composer.importing.file_format import BEHAVIORS
from ugt_composer.importing.table import PART, ROW, Table, named_errors

CLICK, IMPRESSION = "click", "impression"
COLUMN_OF = {"user": "user", "item": "news", "timestamp": "time", "action": "action"}
TIME_FORMAT = "%m/%d/%Y %I:%M:%S %p"
WORD = r"\S+"
LABELLED = r"^\s*\S+-[01](\s+\S+-[01])*\s*$"


def is_behaviors(names: Sequence[str]) -> bool:
    """Whether a line, taken for a header, is one of behaviors.tsv, or a header that somebody gave it."""
    is_header = [name.casefold() for name in names[-2:]] == list(BEHAVIORS[-2:])
    return len(names) == len(BEHAVIORS) and (is_header or re.fullmatch(LABELLED, names[-1]) is not None)


def read_behaviors(table: Table) -> pl.LazyFrame:
    """One row per impression, and one per item of each user's history: PART, ROW and the columns of COLUMN_OF.

    The history of a user's earliest row is taken for clicks right before that row, a microsecond apart. Those of later
    rows hold the same clicks and those on the impressions. Rows without a valid time or impressions are damaged.
    """
    with named_errors(table.path):
        rows = table.read(BEHAVIORS[1:]).collect()
    time = pl.col("time").str.strip_chars().str.to_datetime(TIME_FORMAT, time_unit="us", strict=False)
    rows = rows.with_columns(parsed=time, labelled=pl.col("impressions").str.contains(LABELLED).fill_null(False))
    is_valid = pl.col("parsed").is_not_null() & pl.col("labelled")
    for row in rows.filter(~is_valid).iter_rows(named=True):
        table.damage.add(table.parts[row[PART]], row[ROW], _problem(row))
    rows = rows.filter(is_valid).select(PART, ROW, "user", "history", "impressions", time="parsed")
    word = pl.col("word")
    shown = (
        rows.select(PART, ROW, "user", "time", word=pl.col("impressions").str.extract_all(WORD))
        .explode("word")
        .with_columns(news=word.str.head(-2), action=pl.when(word.str.ends_with("1")).then(pl.lit(CLICK)))
        .with_columns(pl.col("action").fill_null(IMPRESSION))
    )
    earliest = rows.sort("time", maintain_order=True).unique("user", keep="first", maintain_order=True)
    words = earliest.select(PART, ROW, "user", "time", word=pl.col("history").str.extract_all(WORD))
    words = words.filter(pl.col("word").list.len() > 0)
    before = words.with_columns(before=pl.int_ranges(pl.col("word").list.len(), 0, -1)).explode("word", "before")
    clicked = before.with_columns(
        time=pl.col("time") - pl.duration(microseconds="before"), news=word, action=pl.lit(CLICK)
    )
    columns = [PART, ROW, *COLUMN_OF.values()]
    return pl.concat([clicked.select(columns), shown.select(columns)]).lazy()


def _problem(row: dict[str, object]) -> str:
    if row["parsed"] is None:
        return f"found the time {row['time'] or ''!r}, expected one like 11/15/2019 9:05:58 AM"
    return (
        f"found the impressions {str(row['impressions'] or '')[:60]!r}, expected news with -1 if clicked and -0 if "
        "not, such as N123-1 N456-0 (MIND's test set does not say what was clicked)"
    )
