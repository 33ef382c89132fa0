"""Types of columns of Parquet files: what a role cannot be, and how messages call them."""

from collections.abc import Callable

import polars as pl

from ugt_composer.errors import UserError
from ugt_composer.storage.remote_files import InputPath

# Role → whether a type is impossible, and what is expected instead.
IMPOSSIBLE: dict[str, tuple[Callable[[pl.DataType], bool], str]] = {
    **dict.fromkeys(
        ("user", "item"), (lambda dtype: dtype.is_temporal() or dtype == pl.Boolean, "ids, which are text or integers")
    ),
    "timestamp": (lambda dtype: dtype in (pl.Boolean, pl.Duration, pl.Null), "times, which are numbers, dates or text"),
    "rating": (lambda dtype: dtype.is_temporal(), "ratings, which are numbers"),
    "action": (lambda dtype: dtype.is_temporal(), "actions, which are text or numbers"),
}


def check_type(path: InputPath, role: str, column: str, dtype: pl.DataType, option: str) -> None:
    """Raises UserError if a column of this type cannot have the role."""
    impossible, expected = IMPOSSIBLE[role]
    if dtype.is_nested() or impossible(dtype):
        raise UserError(
            f"{path}: column {column!r} holds {shown_type(dtype)}, expected {expected}; name another column with "
            f"{option}"
        )


def shown_type(dtype: pl.DataType) -> str:
    """What a column holds, in the words of a message."""
    if dtype.is_integer() or dtype.is_float():
        return "integers" if dtype.is_integer() else "floating-point numbers"
    if dtype.is_nested():
        return "objects" if dtype == pl.Struct else "lists"
    if dtype in (pl.Duration, pl.Time):
        return "durations" if dtype == pl.Duration else "times of day"
    if dtype.is_temporal():
        return "dates" if dtype == pl.Date else f"times ({dtype})"
    names = {pl.String: "text", pl.Boolean: "truth values", pl.Null: "nothing", pl.Binary: "bytes"}
    return names.get(type(dtype), str(dtype))
