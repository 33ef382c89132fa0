"""Describes the rows of interactions that have an invalid value: where, what was found and what was expected."""

from collections.abc import Callable

import polars as pl

from ugt_composer.importing.ids import no_id_message
from ugt_composer.importing.inputs import Part
from ugt_composer.importing.table import PART, ROW, Table, named_errors
from ugt_composer.importing.timestamps import TimeForm

IDS = ("user", "item")
EXPECTED = {
    "user": "an id",
    "item": "an id",
    "timestamp": "a time",
    "rating": "a number",
}


def first_bad_line(parts: tuple[Part, ...], written: pl.DataFrame, frame: pl.DataFrame) -> str | None:
    """Describes the values of sequences as they are `written` that are no ids in `frame`; None if there are none."""
    for role in IDS:
        bad = written.filter(frame[role].is_null())
        if len(bad):
            bad = bad.filter(pl.col(PART) == pl.col(PART).first())
            path = parts[bad[PART][0]].path
            return no_id_message(path, "line", None, bad[ROW], bad[role], is_float=False)
    return None


def bad_values(rows: pl.LazyFrame, column: str, parsed: pl.Expr, role: str) -> pl.DataFrame:
    """Part, row and value of the rows whose value is invalid; all of them only for ids."""
    selected = rows.select(PART, ROW, value=pl.col(column).cast(pl.String), parsed=parsed)
    invalid = selected.filter(pl.col("parsed").is_null()).drop("parsed")
    return (invalid if role in IDS else invalid.head(1)).collect()


def first_bad_row(
    table: Table,
    invalid: dict[str, int],
    column_of: dict[str, str],
    form: TimeForm | None,
    is_float: Callable[[str], bool],
    find: Callable[[str], pl.DataFrame],
) -> str | None:
    """Describes the first row with an invalid value, column by column; None if all values are valid.

    Args:
        invalid: role → how many values are invalid.
        is_float: role → whether its column holds floating-point numbers.
        find: role → what `bad_values` returns for it.
    """
    for role, expected in (EXPECTED if form is None else {**EXPECTED, "timestamp": form.expected}).items():
        if not invalid.get(role):
            continue
        column = column_of[role]
        with named_errors(table.path):
            bad = find(role)
        part, number, value = bad.row(0)
        path, unit = table.parts[part].path, table.parts[part].unit
        if role in IDS:
            bad = bad.filter(pl.col(PART) == part)
            return no_id_message(path, unit, column, bad[ROW], bad["value"], is_float(role))
        value_text = repr(value) if value else "nothing"
        return f"{path}, {unit} {number}: column {column!r}: found {value_text}, expected {expected}"
    return None
