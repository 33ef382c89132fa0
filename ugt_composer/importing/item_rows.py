"""Checks of a table of items: ids, rows of the same item, and columns that say nothing about the items."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from ugt_composer.errors import UserError
from ugt_composer.importing.column_names import about_columns
from ugt_composer.importing.ids import listed, no_id_message, one_form
from ugt_composer.importing.inputs import Part
from ugt_composer.importing.table import PART, ROW
from ugt_composer.storage.remote_files import InputPath


@dataclass(frozen=True)
class ItemTable:
    """How a table of items was read.

    Attributes:
        parts: the files.
        id_column, name_column, text_columns: the columns used; None or empty where there are none.
        unused: its other columns.
        facts: counts for the report.
    """

    parts: tuple[Part, ...]
    id_column: str
    name_column: str | None
    text_columns: Sequence[str]
    unused: Sequence[str]
    facts: dict[str, int] = field(default_factory=dict)

    @property
    def path(self) -> InputPath:
        """The file that is named if a message is about all of them."""
        return self.parts[0].path

    @property
    def columns(self) -> dict[str, Any]:
        """What each column was used for, for the report."""
        return {**self._used, "unused": list(self.unused)}

    def __str__(self) -> str:
        return about_columns(self.path, self._used, self.unused)

    @property
    def _used(self) -> dict[str, Any]:
        return {"item": self.id_column, "name": self.name_column, "text": list(self.text_columns)}


def check_used(table: ItemTable) -> None:
    """Raises UserError if a table of items has further columns, but none of them is used."""
    if table.unused and table.name_column is None and not table.text_columns:
        raise UserError(
            f"{table.path}: {table.id_column!r} is the item, but none of its other columns ({', '.join(table.unused)}) "
            "looks like a name or a text of the item; name them with --text-columns and --name-column, or give "
            "--text-columns without a name if only the ids are wanted"
        )


def distinct_items(
    frame: pl.DataFrame, table: ItemTable, is_float: bool, skip_bad: bool, missing_as_ids: bool
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """One row per item with its id in one form, and warnings. Adds counts to the facts of `table`.

    Args:
        frame: PART, ROW, item (id as text), written (id as in the file), name, text.
        skip_bad: leave out rows without an id, and of rows that contradict each other all but the first.

    Raises:
        UserError: there are such rows, and `skip_bad` is false; or no rows.
    """
    if not len(frame):
        raise UserError(f"{table.path}: found no item, expected at least one row")
    ids, _, warnings = one_form(frame["item"], f"{table.path}: column {table.id_column!r}", missing_as_ids)
    frame = frame.with_columns(ids.alias("item"))
    bad = frame.filter(pl.col("item").is_null())
    if len(bad):
        part = table.parts[bad[PART][0]]
        here = bad.filter(pl.col(PART) == bad[PART][0])
        found = no_id_message(part.path, part.unit, table.id_column, here[ROW], here["written"], is_float)
        if not skip_bad:
            raise UserError(f"{found}; fix it, or skip such rows with --on-error skip ({len(bad):,} of {len(frame):,})")
        warnings += (f"{found}; such rows were skipped ({len(bad):,})",)
        frame = frame.drop_nulls("item")
        if not len(frame):
            raise UserError(f"{table.path}: no row has an item id; expected one in column {table.id_column!r}")
    rows = len(frame)
    frame = frame.unique(["item", "name", "text"], keep="first", maintain_order=True)
    same = rows - len(frame)
    if same:
        rows_repeat = "row repeats" if same == 1 else "rows repeat"
        warnings += (f"{table.path}: {same:,} {rows_repeat} an item with the same name and text; left out",)
    frame, contradicting = _first_of_contradicting(frame, table, skip_bad)
    table.facts.update(
        rows=rows + len(bad),
        items=len(frame),
        skipped_rows=len(bad),
        repeated_rows=same,
        contradicting_rows=rows - same - len(frame),
        items_without_text=int(frame["text"].null_count()),
    )
    return frame, (*warnings, *contradicting)


def _first_of_contradicting(
    frame: pl.DataFrame, table: ItemTable, skip_bad: bool
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    again = frame.filter(pl.col("item").is_duplicated())
    if not len(again):
        return frame, ()
    item = again["item"][0]
    rows = again.filter(pl.col("item") == item)
    part, lines = table.parts[rows[PART][0]], rows[ROW].to_list()
    place = f"{part.path}, {part.unit}s {listed(lines)}"
    if rows[PART].n_unique() > 1:
        other = next(n for n in rows[PART] if n != rows[PART][0])
        other_line = rows.filter(pl.col(PART) == other)[ROW][0]
        place = f"{part.path}, {part.unit} {lines[0]:,}, and {table.parts[other].path}, {part.unit} {other_line:,}"
    found = (
        f"{place}: item {item!r} occurs {len(lines)} times with different names or "
        f"texts (such items: {again['item'].n_unique():,}, in {len(again):,} rows)"
    )
    if not skip_bad:
        raise UserError(f"{found}; expected one row per item; fix it, or keep the first of them with --on-error skip")
    return frame.unique("item", keep="first", maintain_order=True), (f"{found}; the first row of each was kept",)


def about_texts(cells: pl.DataFrame, ids: pl.Series, table: ItemTable, wanted: Sequence[str]) -> tuple[str, ...]:
    """Warnings about columns of names and texts that are empty, or that hold the ids.

    An empty text among others that are not empty is ordinary, unless the user asked for it.

    Args:
        cells: each column of names and texts, under its own name; text, null where there is none.
        ids: text (n,), the items' ids.
        wanted: the columns of texts that the user named.

    Raises:
        UserError: this is so for all of them, and texts are wanted.
    """
    useless = {
        column: "is empty" if values.null_count() == len(values) else "holds their ids"
        for column, values in zip(cells.columns, cells, strict=True)
        if values.null_count() == len(values) or (values == ids).all()
    }
    if table.text_columns and len(useless) == cells.width and len(ids):
        found = " and ".join(f"{column!r} {what}" for column, what in useless.items())
        others = f" (not used: {', '.join(table.unused)})" if table.unused else ""
        raise UserError(
            f"{table.path}: has no name and no text of any item: {found}{others}; name other columns with "
            "--text-columns and --name-column, or give --text-columns without a name if only the ids are wanted"
        )
    return tuple(
        f"{table.path}: column {column!r} is used as name or text of the items, but {what}"
        + ("" if what == "is empty" else "; name another column with --text-columns and --name-column")
        for column, what in useless.items()
        if what != "is empty" or column in (table.name_column, *wanted)
    )
