"""Describes the rows of interactions that have an invalid value: where, what was found and what was expected."""

from collections.abc import Callable

import polars as pl

from ugt_composer.importing.damage import NAMED_LINES, Damage
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


def bad_lines(parts: tuple[Part, ...], written: pl.DataFrame, frame: pl.DataFrame, count: int) -> Damage:
    """The `count` rows of sequences that are no ids in `frame`, as they are `written`."""
    found = {}
    for role in IDS:
        bad = written.filter(frame[role].is_null())
        if len(bad):
            in_first = bad.filter(pl.col(PART) == pl.col(PART).first())
            path = parts[bad[PART][0]].path
            found[no_id_message(path, "line", None, in_first[ROW], in_first[role], is_float=False)] = bad
    return _in_order(parts, found, count)


def bad_values(rows: pl.LazyFrame, column: str, parsed: pl.Expr, role: str) -> pl.DataFrame:
    """Part, row and value of the rows whose value is invalid; the first ones, but all of them for ids."""
    selected = rows.select(PART, ROW, value=pl.col(column).cast(pl.String), parsed=parsed)
    invalid = selected.filter(pl.col("parsed").is_null()).drop("parsed")
    return (invalid if role in IDS else invalid.head(NAMED_LINES)).collect()


def bad_rows(
    table: Table,
    count: int,
    invalid: dict[str, int],
    column_of: dict[str, str],
    form: TimeForm | None,
    is_float: Callable[[str], bool],
    find: Callable[[str], pl.DataFrame],
) -> Damage:
    """The rows with an invalid value.

    Args:
        count: how many there are.
        invalid: role → how many values are invalid.
        is_float: role → whether its column holds floating-point numbers.
        find: role → what `bad_values` returns for it.
    """
    found = {}
    for role, expected in (EXPECTED if form is None else {**EXPECTED, "timestamp": form.expected}).items():
        if not invalid.get(role):
            continue
        column = column_of[role]
        with named_errors(table.path):
            bad = find(role)
        part, number, value = bad.row(0)
        path, unit = table.parts[part].path, table.parts[part].unit
        if role in IDS:
            in_part = bad.filter(pl.col(PART) == part)
            text = no_id_message(path, unit, column, in_part[ROW], in_part["value"], is_float(role))
        else:
            value_text = repr(value) if value else "nothing"
            text = f"{path}, {unit} {number}: column {column!r}: found {value_text}, expected {expected}"
        found[text] = bad
    return _in_order(table.parts, found, count)


def _in_order(parts: tuple[Part, ...], found: dict[str, pl.DataFrame], count: int) -> Damage:
    """Args: found: what is wrong with the first of some rows → the first of these rows."""
    if not found:
        return Damage()
    rows = {
        text: bad.select(PART, ROW).unique(maintain_order=True).head(NAMED_LINES).rows() for text, bad in found.items()
    }
    places = sorted({place for some in rows.values() for place in some})[:NAMED_LINES]
    return Damage(count, [(parts[part], number) for part, number in places], min(rows, key=lambda text: rows[text][0]))
