"""One vector per item: a matrix in NumPy's .npy format whose rows are in the order of a catalogue."""

from pathlib import Path

import numpy as np

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.errors import UserError

ROWS_AT_ONCE = 1 << 16  # that are checked


def read_matrix(path: str | Path) -> np.ndarray:
    """Reads a float32 matrix (n, d). Raises UserError if the file cannot be read or holds something else."""
    try:
        vectors = np.load(path, mmap_mode="c", allow_pickle=False)  # its pages are shared by processes
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "it does not hold numbers, or was cut short"
        raise UserError(
            f"{path}: cannot be read as a .npy file: {reason}; expected numbers of shape (items, dimensions), as "
            "numpy.save writes them"
        ) from None
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or not vectors.size:
        found = f"{vectors.dtype} {vectors.shape}" if isinstance(vectors, np.ndarray) else "an archive"
        raise UserError(f"{path}: found {found}, expected numbers of shape (items, dimensions)")
    return vectors.astype(np.float32, copy=False).view(np.ndarray)


def first_not_finite(vectors: np.ndarray) -> int | None:
    """The first row with a number that is not finite; None if all are finite."""
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        bad = np.flatnonzero(~np.isfinite(vectors[start : start + ROWS_AT_ONCE]).all(axis=1))
        if len(bad):
            return start + int(bad[0])
    return None


def read_catalogue_vectors(path: str | Path, catalogue: Catalogue, key: str = "init_item_vectors") -> np.ndarray:
    """Reads a float32 matrix (n, d), one row per item of the catalogue. UserErrors name the key or option."""
    try:
        vectors = read_matrix(path)
        _check_for_items(vectors, path, catalogue)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    return vectors


def _check_for_items(vectors: np.ndarray, path: str | Path, catalogue: Catalogue) -> None:
    items = catalogue.items
    if len(vectors) != len(items):
        raise UserError(
            f"{path} has {len(vectors):,} rows, but {catalogue.source} has {len(items):,} items; expected one row per "
            "item, in the same order"
        )
    if (bad := first_not_finite(vectors)) is not None:
        raise UserError(f"{path}: row {bad} (item {items[bad].item_id!r}) holds a number that is not finite")
    if all((vectors[at : at + ROWS_AT_ONCE] == vectors[0]).all() for at in range(0, len(vectors), ROWS_AT_ONCE)):
        raise UserError(f"{path}: all rows are the same, so they distinguish no items; expected one vector per item")
