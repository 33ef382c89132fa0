"""Reads item vectors from a file: a matrix in NumPy's format, and the item id of each row."""

import json
from pathlib import Path

import numpy as np
import polars as pl

from ugt_composer.catalogue.item_matrix import first_not_finite, read_matrix
from ugt_composer.errors import UserError


def read_vectors(
    path: Path, items_file: Path | None, items: pl.Series | None, table: str = "the table of items"
) -> tuple[pl.Series, np.ndarray]:
    """Item ids (n,) and float32 (n, d) vectors.

    Args:
        items_file: one item id per line, or a JSON list of them, in the order of the rows.
        items: ids of the table of items, which are in the order of the rows if there is no `items_file`.
        table: what messages call that table.

    Raises:
        UserError: names what does not match.
    """
    vectors = read_matrix(path)
    place, ids = items_of_rows(path, items_file, items, table, "--vector-items", "item of each row")
    if len(ids) != len(vectors):
        raise UserError(
            f"{path}: found {len(vectors):,} vectors, but {place} has {len(ids):,} items; expected one vector per item"
        )
    if (bad := first_not_finite(vectors)) is not None:
        raise UserError(f"{path}: row {bad} (item {ids[bad]!r}) holds a number that is not finite")
    return ids, vectors


def items_of_rows(
    path: Path, items_file: Path | None, items: pl.Series | None, table: str, option: str, what: str
) -> tuple[str, pl.Series]:
    """Where the items of a file's rows are listed, and their ids, text (n,), as written there.

    Args:
        items_file: one item id per line, or a JSON list of them.
        items: ids of the table of items, used without an `items_file`.
        table: what messages call that table.
        option: the option that gives such a file.
        what: what is not known without it.
    """
    if items_file is not None:
        return str(items_file), _read_order(items_file)
    if items is not None:
        return table, items
    raise UserError(f"{path}: the {what} is not known; give a file of item ids with {option}, or give --items")


def _read_order(path: Path) -> pl.Series:
    expected = "expected one item id per line, or a JSON list"
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = json.loads(text) if text.lstrip().startswith("[") else text.split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {expected}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not text in UTF-8; {expected}") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error}); {expected}") from None
    if text.lstrip().startswith("{"):
        raise UserError(f"{path}: found a JSON object; {expected}, in the order of the rows")
    ids = [str(line).strip() for line in lines]
    while ids and not ids[-1]:
        ids.pop()
    if "" in ids:
        raise UserError(f"{path}, line {ids.index('') + 1}: found nothing, expected an item id")
    return pl.Series("item", ids, dtype=pl.String)
