"""The file of item neighbours, `item_neighbours.npz`. No torch here, because the import writes it.

n items, K neighbours of each at most.
"""

import zipfile
from pathlib import Path

import numpy as np

from ugt_composer.errors import UserError
from ugt_composer.vocabulary import LEVELS

ARRAYS = ("ids", "neighbours", "probabilities")


def save_neighbours(path: Path, ids: np.ndarray, neighbours: np.ndarray, probabilities: np.ndarray) -> None:
    """Writes the neighbours of items with the semantic IDs `ids` (n, 3), as row numbers (n, K) of `ids`, -1: none."""
    np.savez_compressed(
        path,
        ids=ids.astype(np.int32),
        neighbours=neighbours.astype(np.int32),
        probabilities=probabilities.astype(np.float32),
    )


def read_neighbours(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids int64 (n, 3), neighbours int32 (n, K) as row numbers, -1: none, and probabilities float32 (n, K).

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    expected = "expected the item_neighbours.npz that ugt import writes"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids, rows, probabilities = (arrays[name] for name in ARRAYS)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {expected}") from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {expected}") from None
    are_rows = rows.ndim == 2 and rows.shape == probabilities.shape and rows.dtype.kind == "i"
    if not (are_rows and ids.shape == (len(rows), LEVELS) and len(ids) and rows.min() >= -1 and rows.max() < len(ids)):
        raise UserError(f"{path}: its arrays do not fit each other; {expected}")
    if not (np.isfinite(probabilities).all() and probabilities.min() >= 0):
        raise UserError(f"{path}: found a probability that is negative or not finite; {expected}")
    rows, probabilities = rows.astype(np.int32, copy=False), probabilities.astype(np.float32, copy=False)
    return ids.astype(np.int64), rows, probabilities
