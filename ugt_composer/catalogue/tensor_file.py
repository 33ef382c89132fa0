"""Reads one array from a file of NumPy (.npy, .npz) or PyTorch (.pt, .pth)."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ugt_composer.errors import UserError

NUMPY, TORCH = (".npy", ".npz"), (".pt", ".pth")
SUFFIXES = (*NUMPY, *TORCH)


def read_array(path: Path) -> np.ndarray:
    """The only array in a file; PyTorch's integers become int64, its other numbers float64. No code is executed.

    Raises:
        UserError: the file cannot be read, or does not hold exactly one array.
    """
    try:
        content = _read_torch(path) if path.suffix.lower() in TORCH else _read_numpy(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); expected one array") from None
    except Exception as error:
        # What torch and numpy refuse to unpickle, torch with advice that is no user's business.
        objects = isinstance(error, pickle.UnpicklingError) or "Object arrays" in str(error)
        reason = "it holds Python objects, which could run code" if objects else "it is damaged or of another format"
        raise UserError(
            f"{path}: cannot be read ({reason}); expected one array of numbers, as numpy.save writes it, or one "
            "tensor, as torch.save does"
        ) from None
    if isinstance(content, dict):
        arrays = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
        if len(arrays) != 1:
            found = ", ".join(f"{name} {value.shape}" for name, value in arrays.items()) or "no array"
            raise UserError(f"{path}: found {found}; expected exactly one array in the file")
        return next(iter(arrays.values()))
    if not isinstance(content, np.ndarray):
        raise UserError(f"{path}: found {type(content).__name__}, expected one array")
    return content


def _read_numpy(path: Path) -> Any:
    content = np.load(path, allow_pickle=False)
    return content if isinstance(content, np.ndarray) else dict(content)


def _read_torch(path: Path) -> Any:
    import torch

    def as_array(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        is_whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
        return (value.to(torch.int64) if is_whole else value.to(torch.float64)).numpy(force=True)

    content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, dict):
        return {str(name): as_array(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)) and content:
        rows = [as_array(value) for value in content]
        return np.array(rows) if len({np.shape(row) for row in rows}) == 1 else content
    return as_array(content)
