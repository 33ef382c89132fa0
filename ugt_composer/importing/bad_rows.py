"""Describes the rows of interactions that have an invalid value: where, what was found and what was expected."""

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


def first_bad_row(
    table: Table,
    rows: pl.LazyFrame,
    frame: pl.DataFrame,
    column_of: dict[str, str],
    values: dict[str, pl.Expr],
    form: TimeForm | None,
) -> str | None:
    """Describes the first row with an invalid value, column by column; None if all values are valid."""
    for role, expected in (EXPECTED if form is None else {**EXPECTED, "timestamp": form.expected}).items():
        if role not in frame.columns or not frame[role].null_count():
            continue
        column = column_of[role]
        selected = rows.select(PART, ROW, value=pl.col(column).cast(pl.String), parsed=values[role])
        with named_errors(table.path):
            invalid = selected.filter(pl.col("parsed").is_null())
            bad = (invalid if role in IDS else invalid.head(1)).collect()
        part, number, value, _ = bad.row(0)
        path, unit = table.parts[part].path, table.parts[part].unit
        if role in IDS:
            bad = bad.filter(pl.col(PART) == part)
            is_float = rows.collect_schema()[column].is_float()
            return no_id_message(path, unit, column, bad[ROW], bad["value"], is_float)
        value_text = repr(value) if value else "nothing"
        return f"{path}, {unit} {number}: column {column!r}: found {value_text}, expected {expected}"
    return None
