"""Reads item codes in the form that residual quantisers write them: an array of items × levels, or levels × items."""

from pathlib import Path

import numpy as np
import polars as pl

from ugt_composer.catalogue.tensor_file import SUFFIXES, read_array
from ugt_composer.errors import UserError
from ugt_composer.importing.codes import LARGEST_CODE
from ugt_composer.importing.vectors import items_of_rows

VECTOR_LEVELS = 16  # an array of so many columns holds vectors rather than codes


def is_array_file(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def read_code_array(
    path: Path, items_file: Path | None, items: pl.Series | None, table: str = "the table of items"
) -> tuple[pl.Series, list[tuple[int, ...]]]:
    """Returns the item ids, and the codes of each item, like `parse_codes`.

    Args:
        items_file: one item id per line, or a JSON list of them, in the order of the codes.
        items: ids of the table of items, which are in the order of the codes if there is no `items_file`.
        table: what messages call that table.

    Raises:
        UserError: names what does not match.
    """
    array = read_array(path)
    if array.dtype.kind not in "iuf" or array.ndim != 2 or not array.size:
        raise UserError(
            f"{path}: found {_content(array)} of shape {array.shape}, expected whole numbers of shape (items, levels) "
            "or (levels, items)"
        )
    place, ids = items_of_rows(path, items_file, items, table, "--code-items", "item of each code")
    codes = _items_by_levels(path, array, place, len(ids))
    invalid = ~((codes >= 0) & (codes <= LARGEST_CODE) & (codes == np.floor(codes)))
    if invalid.any():
        row, level = np.argwhere(invalid)[0].tolist()
        vectors = "; vectors are for --vectors" if codes.shape[1] >= VECTOR_LEVELS else ""
        without = int(invalid.any(axis=1).sum())
        raise UserError(
            f"{path}: item {ids[row]!r} (number {row + 1} of the file): found {codes[row, level]:g} at "
            f"level {level + 1}, expected a whole number from 0 ({without:,} of {len(ids):,} items have an "
            f"invalid code){vectors}"
        )
    return ids, list(map(tuple, codes.astype(np.int64).tolist()))


def _content(array: np.ndarray) -> str:
    kinds = {"i": "whole numbers", "u": "whole numbers", "f": "numbers", "b": "truth values", "U": "text", "S": "text"}
    return kinds.get(array.dtype.kind, str(array.dtype))


def _items_by_levels(path: Path, array: np.ndarray, place: str, items: int) -> np.ndarray:
    """The array with one row per item."""
    rows, columns = array.shape
    if rows == columns == items:
        raise UserError(
            f"{path}: with the shape {array.shape} and {items:,} items, a row can be an item or a level; save "
            "the codes as JSON, item → list of codes"
        )
    if items not in (rows, columns):
        raise UserError(
            f"{path}: found the shape {array.shape}, but {place} has {items:,} items; expected ({items}, levels) or "
            f"(levels, {items})"
        )
    return array if rows == items else array.T
