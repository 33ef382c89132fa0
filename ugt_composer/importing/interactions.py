"""Interactions of one file as flat arrays, users one after the other, oldest first."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import polars as pl

from ugt_composer.errors import UserError
from ugt_composer.importing.sequences import read_sequences
from ugt_composer.importing.table import (
    PARQUET,
    ROW,
    SEQUENCES,
    columns_of,
    find_column,
    format_of,
    id_text,
    named_errors,
    need_column,
    scan_table,
)
from ugt_composer.importing.timestamps import TimeForm, time_form

IDS = ("user", "item")
EXPECTED = {"user": "an id", "item": "an id", "timestamp": "a time like the first ones", "rating": "a number"}
TIME_SAMPLE = 1000  # times by which the form of all is told


@dataclass(frozen=True)
class Columns:
    """What the user says about the columns; None: look for a usual name."""

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    rating: str | None = None
    action: str | None = None


@dataclass(frozen=True)
class Interactions:
    """N interactions, U users, I items.

    Attributes:
        users: text (U,), in the order of their numbers.
        items: text (I,), in the order of their numbers.
        user: int32 (N,), ascending.
        item: int32 (N,).
        time: int64 or float64 (N,), ascending within a user; None where the order of the file is all there is.
        rating: float32 (N,), NaN where there is none; None without such a column.
        action: text (N,); None without such a column.
        time_form: how the file writes times.
        columns: role → the file's column.
        skipped, first_skipped: how many rows were not understood and left out, and what is wrong with the first.
    """

    users: pl.Series
    items: pl.Series
    user: np.ndarray
    item: np.ndarray
    time: np.ndarray | None
    rating: np.ndarray | None
    action: pl.Series | None
    time_form: TimeForm | None
    columns: dict[str, str]
    skipped: int = 0
    first_skipped: str | None = None

    def __len__(self) -> int:
        return len(self.user)

    def only(self, kept: np.ndarray) -> "Interactions":
        """Those of a bool (N,) mask; the numbers of users and items stay."""
        return replace(
            self,
            user=self.user[kept],
            item=self.item[kept],
            time=None if self.time is None else self.time[kept],
            rating=None if self.rating is None else self.rating[kept],
            action=None if self.action is None else self.action.filter(pl.Series(kept)),
        )


def read_interactions(
    path: Path,
    columns: Columns = Columns(),
    file_format: str | None = None,
    names: list[str] | None = None,
    file_order: bool = False,
    skip_bad: bool = False,
) -> Interactions:
    """Reads a file.

    Args:
        columns: names of the columns.
        file_format: one of FORMATS; by the file's ending if None.
        names: the columns of a file without a header.
        file_order: rows are oldest first already; timestamps are not needed and not looked at.
        skip_bad: leave out rows with a value that is not understood; otherwise the first is an error.

    Raises:
        UserError: naming the file, the row or column, what was found and what was expected.
    """
    kind = format_of(path, file_format)
    if kind == SEQUENCES:
        given = [field.name for field in fields(columns) if getattr(columns, field.name) is not None]
        if given or names is not None:
            option = f"--{given[0]}-column" if given else "--columns"
            raise UserError(f"{path}: {option} is for tables; this is read as lines of `user item item …` (--format)")
        return _as_arrays(path, read_sequences(path), None, {})
    table = scan_table(path, kind, names)
    found = _find_columns(path, table, columns, file_order)
    made, form = _expressions(path, table, found)
    with named_errors(path):
        frame = table.select(**made).collect()
    bad = _first_bad(path, table, frame, found, made, "row" if kind == PARQUET else "line")
    if bad is None:
        return _as_arrays(path, frame, form, found)
    good = frame.drop_nulls([role for role in EXPECTED if role in frame.columns])
    count = len(frame) - len(good)
    if not skip_bad:
        raise UserError(f"{bad}; mend it, or leave out such rows with --on-error skip ({count:,} of {len(frame):,})")
    return replace(_as_arrays(path, good, form, found), skipped=count, first_skipped=bad)


def _find_columns(path: Path, table: pl.LazyFrame, columns: Columns, file_order: bool) -> dict[str, str]:
    with named_errors(path):
        names = columns_of(table)
    found = {role: need_column(role, getattr(columns, role), names, path, f"--{role}-column") for role in IDS}
    for role in ("timestamp", "rating", "action"):
        name = find_column(role, getattr(columns, role), names, path, f"--{role}-column")
        if name is not None:
            found[role] = name
    if file_order:
        found.pop("timestamp", None)
    elif "timestamp" not in found:
        raise UserError(
            f"{path}: none of its columns ({', '.join(names)}) looks like the timestamp; name it with "
            "--timestamp-column, or give --file-order if each user's rows are oldest first"
        )
    if len(set(found.values())) < len(found):
        raise UserError(f"{path}: one column cannot be two things: {found}")
    return found


def _expressions(path: Path, table: pl.LazyFrame, found: dict[str, str]) -> tuple[dict[str, pl.Expr], TimeForm | None]:
    """role → its values: ids as text, times and ratings as numbers, null where a value is not understood."""
    with named_errors(path):
        schema = table.collect_schema()
    made = {role: id_text(found[role], schema[found[role]]) for role in IDS}
    form = None
    if "timestamp" in found:
        name = found["timestamp"]
        with named_errors(path):
            sample = table.select(name).drop_nulls().head(TIME_SAMPLE).collect()[name]
        form = time_form(sample, f"{path}: column {name!r}")
        made["timestamp"] = form.parse(pl.col(name))
    if "rating" in found:
        raw = pl.col(found["rating"])  # an empty one is a missing rating, NaN
        made["rating"] = pl.when(raw.is_null()).then(float("nan")).otherwise(raw.cast(pl.Float32, strict=False))
    if "action" in found:
        made["action"] = pl.col(found["action"]).cast(pl.String)
    return made, form


def _first_bad(
    path: Path, table: pl.LazyFrame, frame: pl.DataFrame, found: dict[str, str], made: dict[str, pl.Expr], word: str
) -> str | None:
    """What is wrong with the first row whose value of some column was not understood."""
    for role, expected in EXPECTED.items():
        if role not in frame.columns or not frame[role].null_count():
            continue
        row = table.select(ROW, value=pl.col(found[role]).cast(pl.String), made=made[role])
        with named_errors(path):
            number, value, _ = row.filter(pl.col("made").is_null()).head(1).collect().row(0)
        shown = repr(value) if value else "nothing"
        return f"{path}, {word} {number}: column {found[role]!r}: found {shown}, expected {expected}"
    return None


def _numbered(names: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """The distinct names in their order, and the number of each given one; shorter names first, so that 9 < 10."""
    distinct = names.unique().to_frame("name").sort(pl.col("name").str.len_bytes(), "name")["name"]
    return distinct, names.cast(pl.Enum(distinct)).to_physical().to_numpy().astype(np.int32)


def _as_arrays(path: Path, frame: pl.DataFrame, form: TimeForm | None, found: dict[str, str]) -> Interactions:
    if not len(frame):
        raise UserError(f"{path}: found no interaction, expected at least one row")
    columns = {name: frame[name] for name in frame.columns}
    del frame  # each column of text goes as soon as it is numbered
    users, user = _numbered(columns.pop("user"))
    items, item = _numbered(columns.pop("item"))
    time = columns["timestamp"].to_numpy() if "timestamp" in columns else None
    order = _order(user, time)
    return Interactions(
        users=users,
        items=items,
        user=user[order],
        item=item[order],
        time=None if time is None else time[order],
        rating=columns["rating"].to_numpy()[order] if "rating" in columns else None,
        action=columns["action"][order] if "action" in columns else None,
        time_form=form,
        columns=found,
    )


def _order(user: np.ndarray, time: np.ndarray | None) -> np.ndarray:
    """By user, then time; ties stay in the order of the file."""
    order = np.argsort(user if time is None else time, kind="stable")
    return order if time is None else order[np.argsort(user[order], kind="stable")]
