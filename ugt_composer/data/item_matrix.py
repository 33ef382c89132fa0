"""A vector an item: a matrix in NumPy's format whose rows are in the order of a catalogue."""

from pathlib import Path

import numpy as np

from ugt_composer.data.catalogue import Catalogue
from ugt_composer.errors import UserError


def read_matrix(path: str | Path) -> np.ndarray:
    """float32 (n, d). UserError where the file is none, or holds something else."""
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as a .npy file: {error}") from None
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or not vectors.size:
        found = f"{vectors.dtype} {vectors.shape}" if isinstance(vectors, np.ndarray) else "an archive"
        raise UserError(f"{path}: found {found}, expected numbers of shape (items, dimensions)")
    return vectors.astype(np.float32, copy=False)


def first_not_finite(vectors: np.ndarray) -> int | None:
    """The first row with a number that is not finite; None where there is none."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    return int(bad[0]) if len(bad) else None


def read_catalogue_vectors(path: str | Path, catalogue: Catalogue) -> np.ndarray:
    """float32 (n, d), a row an item of the catalogue. UserError for what cannot be that."""
    vectors, items = read_matrix(path), catalogue.items
    if len(vectors) != len(items):
        raise UserError(
            f"init_item_vectors: {path} has {len(vectors):,} rows, but {catalogue.source} {len(items):,} items; "
            "expected a row for each item, in its order"
        )
    if (bad := first_not_finite(vectors)) is not None:
        raise UserError(f"{path}: row {bad} (item {items[bad].item_id!r}) holds a number that is not finite")
    if (vectors == vectors[0]).all():
        raise UserError(f"{path}: all rows are the same, which tells no items apart; expected a vector an item")
    return vectors
