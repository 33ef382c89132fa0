"""Arrays in a file that processes map into memory, so that all processes of a machine share them in its page cache.

The format is that of safetensors: 8 bytes with the length of the header, the header as JSON, and the arrays.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

ALIGNMENT = 8  # bytes, of the first array: the largest size of a number
DTYPES = {"BOOL": np.bool_, "U8": np.uint8, "I32": np.int32, "I64": np.int64}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
SUFFIX = ".arrays"


def arrays_beside(path: Path) -> Path:
    """Where the arrays made of a file are kept beside it: a hidden file."""
    return path.with_name(f".{path.name}{SUFFIX}")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> None:
    """Writes arrays of the types in DTYPES, and text about them; the file appears complete or not at all.

    Raises:
        OSError: the folder cannot be written, or is full.
    """
    header: dict[str, object] = {"__metadata__": dict(facts)}
    # The largest numbers first, so that each array is aligned without gaps, which safetensors does not allow.
    arrays = dict(sorted(arrays.items(), key=lambda named: -named[1].itemsize))
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype], "shape": array.shape, "data_offsets": (start, end)}
    text = msgspec.json.encode(header)
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.partial-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it readable for its owner only
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def map_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]] | None:
    """The arrays and facts of a file of `write_arrays`; None if there is no such file, or it is not valid.

    What a process writes into the arrays only this process sees.
    """
    try:
        data = np.memmap(path, np.uint8, mode="c").view(np.ndarray)
        begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = msgspec.json.decode(data[8:begin].tobytes())
        facts = header.pop("__metadata__")
        arrays = {}
        for name, about in header.items():
            start, end = about["data_offsets"]
            part = data[begin + start : begin + end]
            arrays[name] = part.view(DTYPES[about["dtype"]]).reshape(about["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return arrays, facts
