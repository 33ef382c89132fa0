"""The text format `user item item …`: one line per user, items oldest first, separated by white space."""

from pathlib import Path

import polars as pl

from ugt_composer.errors import UserError
from ugt_composer.importing.table import ROW, named_errors


def read_sequences(path: Path) -> pl.DataFrame:
    """One row per interaction, in the order of the file: ROW, the number of its line; user and item, both text."""
    if not path.is_file():
        raise UserError(f"{path}: found no such file, expected lines of `user item item …`")
    with named_errors(path):
        lines = pl.scan_lines(path, name="line", row_index_name="number", row_index_offset=1).collect()
        words = lines.select("number", words=pl.col("line").str.extract_all(r"\S+")).filter(
            pl.col("words").list.len() > 0
        )
        users = words.select("number", user=pl.col("words").list.first(), items=pl.col("words").list.slice(1))
    alone = users.filter(pl.col("items").list.len() == 0)
    if len(alone):
        number, user = alone.row(0)[:2]
        raise UserError(f"{path}, line {number}: found {user!r} alone, expected a user and then items, oldest first")
    again = users.filter(~pl.col("user").is_first_distinct())
    if len(again):
        number, user = again.row(0)[:2]
        first = users.filter(pl.col("user") == user).row(0)[0]
        raise UserError(
            f"{path}, line {number}: user {user!r} again, first in line {first}; expected one line per user"
        )
    return users.select(pl.col("number").alias(ROW), "user", item=pl.col("items")).explode("item")
