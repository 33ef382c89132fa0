"""Items with their ids, names and texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ugt_composer.errors import UserError
from ugt_composer.importing.column_names import (
    ITEM_TABLE_NAMES,
    NAME_COLUMNS,
    TEXT_COLUMNS,
    named_column,
    need_column,
    usual_columns,
)
from ugt_composer.importing.column_types import check_type
from ugt_composer.importing.file_format import FORMATS, ITEMS_BY_EXTENSION, SEQUENCES, FileFormat
from ugt_composer.importing.ids import id_text
from ugt_composer.importing.inputs import find_parts
from ugt_composer.importing.item_rows import ItemTable, about_texts, check_used, distinct_items
from ugt_composer.importing.table import PART, ROW, named_errors, open_table
from ugt_composer.storage.remote_files import InputPath

# Fewer than those of ids: "?" and "Missing" are titles.
MISSING_TEXTS = ("nan", "NaN", "null", "NULL", "None", "<NA>", "N/A", "#N/A", "NaT", "\\N")
ENTITIES = {"&amp;": "&", "&quot;": '"', "&#39;": "'", "&#x27;": "'", "&lt;": "<", "&gt;": ">", "&nbsp;": " "}


@dataclass(frozen=True)
class Items:
    """I items, in the order of their numbers.

    Attributes:
        ids: text (I,), distinct.
        names, texts: text (I,), null or empty where an item has none; None if no item has one.
        warnings: sentences about the file, for the user and the report.
        table: how the file was read; None if the items come from no table.
    """

    ids: pl.Series
    names: pl.Series | None = None
    texts: pl.Series | None = None
    warnings: tuple[str, ...] = ()
    table: ItemTable | None = None

    def __len__(self) -> int:
        return len(self.ids)


def read_items(
    path: InputPath,
    id_column: str | None = None,
    text_columns: Sequence[str] | None = None,
    name_column: str | None = None,
    file_format: FileFormat = ITEMS_BY_EXTENSION,
    skip_bad: bool = False,
    missing_as_ids: bool = False,
) -> Items:
    """Reads a table of items and keeps its order. Columns that are not named are detected by their usual names.

    Args:
        path: a file, folder or pattern.
        text_columns: columns that describe an item; empty: none, only the ids are wanted; None: those with usual
            names, and the `name_column`.
        skip_bad: leave out damaged rows, those without an id, and of rows that contradict each other all but the first.
        missing_as_ids: values such as "nan" and "NULL" are ids; otherwise they are invalid.

    Raises:
        UserError: names the file, the lines or columns, what was found and what was expected.
    """
    parts = find_parts([path], file_format)
    path = parts[0].path
    if parts[0].kind == SEQUENCES:
        tables = ", ".join(name for name in FORMATS if name != SEQUENCES)
        raise UserError(
            f"{path}: expected a table of items; give its format with --items-format ({tables}) or --items-separator"
        )
    table = open_table(parts)
    columns = table.names
    id_column = need_column("item", id_column, columns, path, "--items-column", ITEM_TABLE_NAMES, table.names_option)
    others = [name for name in columns if name != id_column]
    texts = _select_columns(path, text_columns, TEXT_COLUMNS, others, "--text-columns")
    names = _select_columns(
        path, None if name_column is None else [name_column], NAME_COLUMNS, others, "--name-column"
    )[:1]
    if text_columns is None:
        texts = list(dict.fromkeys([*(names if name_column is not None else ()), *texts]))
    used = list(dict.fromkeys([*texts, *names]))
    unused = [name for name in others if name not in used]
    about = ItemTable(parts, id_column, names[0] if names else None, texts, unused)
    if text_columns is None:
        check_used(about)
    rows = table.read([id_column, *used], one_line=[id_column])
    with named_errors(path):
        schema = rows.collect_schema()
    check_type(path, "item", id_column, schema[id_column], "--items-column")
    with named_errors(path):
        cells = rows.select(
            PART,
            ROW,
            item=id_text(id_column, schema[id_column]),
            written=pl.col(id_column).cast(pl.String),
            cells=pl.struct(_text(name, schema[name]).alias(name) for name in used) if used else pl.lit(None),
        ).collect()
    table.damage.refuse(skip_bad, len(cells))
    values = cells["cells"].struct.unnest() if used else pl.DataFrame()
    frame = cells.select(PART, ROW, "item", "written").with_columns(
        name=values[names[0]] if names else pl.lit(None, pl.String),
        text=values.select(pl.concat_str(texts, separator=" | ", ignore_nulls=True)).to_series()
        if texts
        else pl.lit(None, pl.String),
    )
    frame = frame.with_columns(text=pl.when(pl.col("text").str.len_bytes() > 0).then("text"))
    warnings = (
        *table.damage.warnings,
        *about_texts(values, cells["item"], about, () if text_columns is None else texts),
    )
    frame, more = distinct_items(frame, about, schema[id_column].is_float(), skip_bad, missing_as_ids)
    about.facts["skipped_rows"] += table.damage.count
    warnings += more
    return Items(frame["item"], frame["name"] if names else None, frame["text"] if texts else None, warnings, about)


def all_items(seen: pl.Series, known: Items | None, covered: pl.Series | None, only_seen: bool) -> Items:
    """The catalogue's items: those of the interactions and of the table of items, restricted to those `covered`.

    Args:
        seen: ids (n,) of the interactions' items.
        known: the table of items.
        covered: ids of the items that a file has semantic IDs or vectors for; None if these are to be built.
        only_seen: leave out items without interactions.
    """
    ids = seen
    if not only_seen:
        ids = pl.concat([seen, *(more for more in (covered, None if known is None else known.ids) if more is not None)])
    if covered is not None:
        ids = ids.filter(ids.is_in(covered.implode()))
    distinct = ids.alias("item").unique().to_frame().sort(pl.col("item").str.len_bytes(), "item")
    if known is None:
        return Items(distinct["item"])
    facts = {"name": known.names, "text": known.texts}
    table = pl.DataFrame({"item": known.ids, **{name: values for name, values in facts.items() if values is not None}})
    joined = distinct.join(table, on="item", how="left", maintain_order="left")
    name, text = (joined[fact] if fact in joined.columns else None for fact in facts)
    return Items(distinct["item"], name, text)


def numbers_of(ids: pl.Series, items: Items) -> np.ndarray:
    """int64 (n,): the number of each id in `items`; −1 if `items` does not have it."""
    numbered = items.ids.alias("item").to_frame().with_row_index("number")
    numbers = ids.alias("item").to_frame().join(numbered, on="item", how="left", maintain_order="left")["number"]
    return numbers.cast(pl.Int64).fill_null(-1).to_numpy()


def _select_columns(
    path: InputPath, names: Sequence[str] | None, usual: Sequence[str], columns: Sequence[str], option: str
) -> list[str]:
    """The columns called `names`, which may be separated by commas; if None, those with `usual` names."""
    if names is None:
        return usual_columns(usual, columns)
    single = [part.strip() for name in names for part in ([name] if name in columns else name.split(","))]
    return [named_column(name, columns, path, option) for name in single]


def _text(column: str, dtype: pl.DataType) -> pl.Expr:
    text = pl.col(column)
    while isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.List):
        text, dtype = text.list.eval(pl.element().explode()), dtype.inner
    if isinstance(dtype, pl.Struct):
        text = text.struct.json_encode()
    elif isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.Struct):
        text = text.list.eval(pl.element().struct.json_encode()).list.join(", ", ignore_nulls=True)
    elif isinstance(dtype, pl.List):
        text = text.cast(pl.List(pl.String)).list.join(", ", ignore_nulls=True)
    cleaned = text.cast(pl.String).str.replace_many(list(ENTITIES), list(ENTITIES.values())).str.strip_chars()
    return pl.when((cleaned.str.len_bytes() > 0) & ~cleaned.is_in(MISSING_TEXTS)).then(cleaned)
