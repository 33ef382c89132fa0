"""Reads the interactions of one or more files into flat arrays, grouped by user, oldest first."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import polars as pl

from ugt_composer.errors import UserError
from ugt_composer.importing.action_words import are_actions
from ugt_composer.importing.bad_rows import EXPECTED, IDS, bad_lines, bad_rows, bad_values
from ugt_composer.importing.column_names import find_column, need_column
from ugt_composer.importing.column_types import check_type
from ugt_composer.importing.damage import Damage
from ugt_composer.importing.file_format import BY_EXTENSION, MIND, SEQUENCES, FileFormat
from ugt_composer.importing.ids import MISSING, id_text, one_form
from ugt_composer.importing.inputs import find_parts
from ugt_composer.importing.mind import COLUMN_OF, is_behaviors, read_behaviors
from ugt_composer.importing.sample import first_values
from ugt_composer.importing.sequences import read_sequences
from ugt_composer.importing.table import Table, named_errors, open_table
from ugt_composer.importing.time_column import TimeColumn, checked_times, time_form
from ugt_composer.importing.time_values import TimesInMemory
from ugt_composer.importing.timestamps import TimeForm
from ugt_composer.storage.remote_files import InputPath
from ugt_composer.storage.s3_url import Address

LINES = {SEQUENCES: "lines of `user item item …`", MIND: "MIND's impressions (--format mind)"}


@dataclass(frozen=True)
class Columns:
    """The column names that the user gave; None: detect the column by its usual names."""

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
        time: int64 or float64 (N,), ascending within a user; None if only the order of the file is known.
        rating: float32 (N,), NaN where a row has none; None without such a column.
        action: text (N,); None without such a column.
        time_form: the format of the file's times.
        columns: role → the file's column.
        unused: the file's other columns.
        skipped, first_skipped: how many rows were left out as invalid, and what is wrong with the first one.
        warnings: sentences about the file, for the user and the report.
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
    unused: tuple[str, ...] = ()
    skipped: int = 0
    first_skipped: str | None = None
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.user)

    def only(self, kept: np.ndarray) -> "Interactions":
        """The interactions that a bool (N,) mask selects; users and items keep their numbers."""
        return replace(
            self,
            user=self.user[kept],
            item=self.item[kept],
            time=None if self.time is None else self.time[kept],
            rating=None if self.rating is None else self.rating[kept],
            action=None if self.action is None else self.action.filter(pl.Series(kept)),
        )


def read_interactions(
    inputs: InputPath | Sequence[InputPath],
    columns: Columns = Columns(),
    file_format: FileFormat = BY_EXTENSION,
    file_order: bool = False,
    skip_bad: bool = False,
    missing_as_ids: bool = False,
    time_format: tuple[str, ...] | None = None,
) -> Interactions:
    """Reads files.

    Args:
        inputs: files, folders or patterns such as `parts/*.csv`.
        columns: names of the columns.
        file_format: how the files are written.
        file_order: rows are already oldest first; timestamps are not needed and are ignored.
        skip_bad: leave out rows with an invalid value; otherwise the first such row is an error.
        missing_as_ids: values such as "nan" and "NULL" are ids; otherwise they are invalid.
        time_format: the unit or the formats of the timestamps, as in --time-format; None: detected.

    Raises:
        UserError: names the file, the row or column, what was found and what was expected.
    """
    parts = find_parts([inputs] if isinstance(inputs, Path | Address) else inputs, file_format)
    path = parts[0].path
    if parts[0].kind in (SEQUENCES, MIND):
        _check_no_columns(path, parts[0].kind, columns, file_format, time_format, file_order)
    if parts[0].kind == SEQUENCES:
        written, damage = read_sequences(parts)
        damage.refuse_most(skip_bad, len(written))
        frame, _, remarks = _with_ids(path, written, {}, {}, missing_as_ids)
        good = _valid(frame)
        damage = damage.with_others(bad_lines(parts, written, frame, len(frame) - len(good)), parts)
        return _checked(path, good, None, {}, damage, skip_bad, remarks)
    table = open_table(parts)
    if parts[0].kind == MIND:
        column_of, rows = COLUMN_OF, read_behaviors(table)
    else:
        column_of = find_columns(table, columns, file_order)
        rows = table.read(list(column_of.values()), one_line=list(column_of.values()))
    values, times, form = value_expressions(path, rows, column_of), None, None
    if "timestamp" in column_of:
        times = TimeColumn(table, rows, column_of["timestamp"])
        form = time_form(times, time_format)
        values["timestamp"] = form.parse(times.value)
    with named_errors(path):
        frame = rows.select(**values).collect()
    table.damage.refuse_most(skip_bad, len(frame))
    frame, values, remarks = _with_ids(path, frame, column_of, values, missing_as_ids)
    if times is not None and form is not None:
        found = TimesInMemory(frame["timestamp"])
        checked, form, unusual = checked_times(times, form, found, time_format is None, skip_bad)
        assert isinstance(checked, TimesInMemory)
        frame, values["timestamp"] = frame.with_columns(checked.values.alias("timestamp")), form.parse(times.value)
        remarks += unusual
    good = _valid(frame)
    bad = bad_rows(
        table,
        len(frame) - len(good),
        {role: frame[role].null_count() for role in frame.columns},
        column_of,
        form,
        lambda role: rows.collect_schema()[column_of[role]].is_float(),
        lambda role: bad_values(rows, column_of[role], values[role], role),
    )
    unused = () if parts[0].kind == MIND else tuple(name for name in table.names if name not in column_of.values())
    log = _checked(path, good, form, column_of, table.damage.with_others(bad, parts), skip_bad, remarks)
    return replace(log, unused=unused)


def _check_no_columns(
    path: InputPath,
    kind: str,
    columns: Columns,
    file_format: FileFormat,
    time_format: tuple[str, ...] | None,
    file_order: bool,
) -> None:
    named_roles = [field.name for field in fields(columns) if getattr(columns, field.name) is not None]
    given = {
        "--columns": file_format.names is not None,
        "--time-format": time_format is not None,
        "--file-order": file_order and kind == MIND,
    }
    options = [*(f"--{role}-column" for role in named_roles), *(name for name in given if given[name])]
    if options:
        raise UserError(
            f"{path}: {options[0]} is for tables, but this file is read as {LINES[kind]}; "
            "give --format or --separator if it is a table"
        )


def _with_ids(
    path: InputPath, frame: pl.DataFrame, column_of: dict[str, str], values: dict[str, pl.Expr], missing_as_ids: bool
) -> tuple[pl.DataFrame, dict[str, pl.Expr], tuple[str, ...]]:
    """The frame with ids in one form, null where a value is none; the expressions with this form; and warnings."""
    warnings: tuple[str, ...] = ()
    for role in IDS:
        place = f"{path}: column {column_of[role]!r}" if role in column_of else f"{path}: {role}s"
        ids, form, remarks = one_form(frame[role], place, missing_as_ids)
        warnings += remarks
        frame = frame.with_columns(ids.alias(role))
        if role in values:
            values = {**values, role: form.parse(values[role])}
    return frame, values, warnings


def _valid(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows without an invalid value."""
    needed = [role for role in EXPECTED if role in frame.columns]
    return frame.drop_nulls(needed) if any(frame[role].null_count() for role in needed) else frame


def _checked(
    path: InputPath,
    good: pl.DataFrame,
    form: TimeForm | None,
    column_of: dict[str, str],
    damage: Damage,
    skip_bad: bool,
    warnings: tuple[str, ...],
) -> Interactions:
    """The interactions of the valid rows.

    Args:
        damage: all other rows.

    Raises:
        UserError: there are other rows, and `skip_bad` is false.
    """
    if not skip_bad:
        damage.refuse(skip_bad, len(good))
    check_any_rows(path, len(good))
    log = as_arrays(good, form, column_of)
    return replace(log, skipped=damage.count, first_skipped=damage.first, warnings=warnings)


def check_any_rows(path: InputPath, rows: int) -> None:
    if not rows:
        raise UserError(f"{path}: found no interaction, expected at least one row")


def find_columns(table: Table, columns: Columns, file_order: bool) -> dict[str, str]:
    path, names = table.path, table.names
    if is_behaviors(names):
        raise UserError(f"{path}: has MIND's lists of impressions; give --format mind")
    column_of = {
        role: need_column(
            role, getattr(columns, role), names, path, f"--{role}-column", names_option=table.names_option
        )
        for role in IDS
    }
    named = [getattr(columns, field.name) for field in fields(columns)]
    free = [name for name in names if name not in named]
    for role in ("timestamp", "rating", "action"):
        given = getattr(columns, role)
        name = find_column(role, given, free if given is None else names, path, f"--{role}-column")
        if name is not None:
            column_of[role] = name
    if "action" not in column_of:
        values = first_values(table, [name for name in names if name not in column_of.values()])
        found = [name for name in values if are_actions(values[name])]
        column_of |= {"action": found[0]} if found else {}
    if file_order:
        column_of.pop("timestamp", None)
    elif "timestamp" not in column_of:
        raise UserError(
            f"{path}: none of its columns ({', '.join(names)}) looks like the timestamp; name it with "
            "--timestamp-column, or give --file-order if each user's rows are oldest first"
        )
    if len(set(column_of.values())) < len(column_of):
        raise UserError(f"{path}: found one column used twice: {column_of}; expected a different column for each")
    return column_of


def value_expressions(path: InputPath, rows: pl.LazyFrame, column_of: dict[str, str]) -> dict[str, pl.Expr]:
    """role → expression of its values, except for times: ids and actions as text, ratings as numbers.

    They are null where a value is invalid.
    """
    with named_errors(path):
        schema = rows.collect_schema()
    for role, column in column_of.items():
        check_type(path, role, column, schema[column], f"--{role}-column")
    values = {role: id_text(column_of[role], schema[column_of[role]]) for role in IDS}
    if "rating" in column_of:
        raw = pl.col(column_of["rating"])  # an empty cell, or "NULL", is a missing rating, NaN
        missing, number = raw.is_null(), raw
        if schema[column_of["rating"]] == pl.String:
            number = raw.str.strip_chars()
            missing |= (number == "") | number.is_in(MISSING)
        number = number.cast(pl.Float32, strict=False)
        values["rating"] = pl.when(missing).then(float("nan")).when(~number.is_infinite()).then(number)
    if "action" in column_of:
        values["action"] = pl.col(column_of["action"]).cast(pl.String)
    return values


def _numbered(names: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """Returns the distinct names, shorter ones first so that 9 < 10, and for each name its number in that order."""
    distinct = names.unique().to_frame("name").sort(pl.col("name").str.len_bytes(), "name")["name"]
    return distinct, names.cast(pl.Enum(distinct)).to_physical().to_numpy().astype(np.int32)


def as_arrays(frame: pl.DataFrame, form: TimeForm | None, column_of: dict[str, str]) -> Interactions:
    """The interactions of a frame with the columns user, item (text, or numbers that are those of the items), and maybe
    timestamp, rating and action."""
    columns = {name: frame[name] for name in frame.columns}
    del frame  # so that each text column is freed as soon as it is numbered
    users, user = _numbered(columns.pop("user"))
    written = columns.pop("item")
    is_text = written.dtype == pl.String
    items, item = _numbered(written) if is_text else (pl.Series(dtype=pl.String), written.to_numpy())
    del written
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
        columns=column_of,
    )


def _order(user: np.ndarray, time: np.ndarray | None) -> np.ndarray:
    """The permutation that sorts by user, then time; ties keep the order of the file."""
    order = np.argsort(user if time is None else time, kind="stable")
    return order if time is None else order[np.argsort(user[order], kind="stable")]
