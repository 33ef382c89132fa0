"""Training checkpoints on disk: written atomically with a record of their hashes, rotated, verified when read.

A checkpoint is a file, `ba00001000.pt`, or with `checkpoint.sharded` a folder, `ba00001000`, with one part per rank.
"""

import datetime
import io
import logging
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ugt_composer.checkpoint.save_folder import CONFIG, EVENTS, METRICS, PORTABLE, RUN_ID, list_checkpoints
from ugt_composer.checkpoint.untrusted import forbidden
from ugt_composer.checkpoint.written import or_removed, write_hashed
from ugt_composer.errors import UserError
from ugt_composer.storage.record import (
    RECORD,
    CorruptedRecordError,
    first_corruption,
    put_in_place,
    read_record,
    record_beside,
)

log = logging.getLogger(__name__)
LIGHT_KEYS = {"state", "scaler", "rng", "config", "data", "catalogue"}
WHOLE_KEYS = LIGHT_KEYS | {"model", "optimizer"}
SHARDED_KEYS = LIGHT_KEYS | {"sharded"}
AVERAGE = "average"  # of the weights, with `ema_decay`
VERSION = "version"  # of the program that wrote it; the first checkpoints do not have this key
SHARDS, STATE = "shards", "state.pt"  # in the folder of a sharded checkpoint
ALL_MACHINES = (
    "all_machines.json"  # there too, if other machines have a part of the checkpoint: the record of all files
)
INCOMPLETE = ".incomplete"  # suffix of a checkpoint of which other machines do not have their part
REPLACED = ".replaced"  # suffix of an old folder while a new one of its name is put in place


def write_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint of one file and its record. Atomic: a kill leaves the old or the new one.

    Raises:
        OSError: it cannot be written. An earlier checkpoint of this name is kept.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with or_removed(temporary):
        facts = write_hashed(temporary, lambda file: torch.save(content, file))  # type: ignore[arg-type]
        put_in_place(record_beside(path), {path.name: facts})


def rotate(folder: str | Path, keep: int, good: set[Path], keep_also: str | None = None) -> None:
    """Deletes all but the newest `keep` valid checkpoints. Corrupted ones do not count towards `keep`.

    Args:
        good: checkpoints that were verified before. The hashes of others are checked; valid ones are added.
        keep_also: the name of a checkpoint that is being uploaded: not deleted now, but by a later call.
    """
    kept, checkpoints = 0, list_checkpoints(folder)
    for path in checkpoints if len(checkpoints) > keep else ():
        if kept == keep:
            if path.name != keep_also:
                _delete(path)
                good.discard(path)
        elif corruption_of(path, sizes_only=path in good) is None:
            good.add(path)
            kept += 1
    clean(folder)


def clean(folder: str | Path) -> None:
    """Removes the leftovers of saves that were killed."""
    folder = Path(folder)
    for replaced in folder.glob(f"ba*{REPLACED}"):
        path = replaced.with_name(replaced.name.removesuffix(REPLACED))
        if path.exists():
            _remove(replaced)
        else:
            replaced.rename(path)  # the kill came before the new folder was in place
    of_models = [f"{name}/{leftover}" for name in ("best", "latest") for leftover in ("*.tmp", ".tmp*")]
    for pattern in ("ba*.tmp", "*.fetched.tmp", *of_models):  # .tmp*: written by safetensors
        for temporary in folder.glob(pattern):
            _remove(temporary)
    for record in folder.glob(f"ba*.{RECORD}"):
        if not record.with_name(record.name.removesuffix(f".{RECORD}")).exists():
            _remove(record)


def _delete(path: Path) -> None:
    """Renames a folder before its files are deleted: a kill in between leaves no checkpoint that looks complete."""
    if path.is_dir():
        path = path.rename(path.with_name(path.name + ".tmp"))
    _remove(path)
    _remove(record_beside(path))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def set_aside(folder: str | Path) -> Path | None:
    """Moves the files of an earlier run to `earlier-1`, `earlier-2`, …; returns None if there are none.

    Otherwise the rotation would delete the checkpoints of a new run first, because they have fewer batches.
    """
    names = (*PORTABLE, METRICS, EVENTS, CONFIG)
    checkpoints = list_checkpoints(folder)
    beside = [*(record_beside(path) for path in checkpoints), *(Path(folder) / name for name in names)]
    old = [*checkpoints, *(path for path in beside if path.exists())]
    if not old:
        return None
    if (run_id := Path(folder) / RUN_ID).exists():
        old.append(run_id)  # a new run has another one
    taken = {path.name for path in Path(folder).glob("earlier-*")}
    target = Path(folder) / next(f"earlier-{n}" for n in range(1, len(taken) + 2) if f"earlier-{n}" not in taken)
    target.mkdir()
    for path in old:
        path.rename(target / path.name)
    return target


def corruption_of(path: Path, sizes_only: bool = False) -> str | None:
    """What is wrong with a checkpoint's files, such as "is missing"; None if they are as written.

    A checkpoint without a record, such as one copied by hand, is checked by the checksums in the file itself.
    """
    is_folder = path.is_dir()
    record_path, needed = (path / RECORD, STATE) if is_folder else (record_beside(path), path.name)
    try:
        record = read_record(record_path)
    except CorruptedRecordError as error:
        if is_folder:
            return f"its {RECORD} {error}"
        log.warning("%s %s; checking %s by the checksums that it contains", record_path, error, path.name)
        record = None
    # The folder of a machine without rank 0 has shards, but no state.pt.
    if record is None or (needed not in record and ALL_MACHINES not in record):
        if is_folder and not any((path / SHARDS).rglob("*")):
            return f"its folder {SHARDS} is missing or empty"
        return _checksum_mismatch(path / STATE if is_folder else path)
    mismatch = first_corruption(record_path.parent, record, sizes_only)
    if mismatch is None:
        return None
    name, corruption = mismatch
    return f"its {name} {corruption}" if is_folder else corruption


def _checksum_mismatch(path: Path) -> str | None:
    """torch.save writes a zip file with a checksum of each of its parts; torch.load does not verify them."""
    try:
        with zipfile.ZipFile(path) as parts:
            corrupted = parts.testzip()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except Exception as error:  # a truncated file can fail in any way
        return f"cannot be read as a checkpoint ({error})"
    return None if corrupted is None else f"cannot be read as a checkpoint (its part {corrupted} is corrupted)"


def newest_of_recorded_size(folder: str | Path) -> Path | None:
    """The newest checkpoint whose files all have their recorded size. Their hashes were verified when written."""
    try:
        return next((path for path in list_checkpoints(folder) if corruption_of(path, sizes_only=True) is None), None)
    except OSError:
        return None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads tensors and plain data only: nothing in the file is executed.

    Raises:
        UserError: the file is missing, corrupted, or no checkpoint.
    """
    path = Path(path)
    if path.exists() and (corruption := corruption_of(path)) is not None:
        raise UserError(f"{path}: {corruption}")
    if path.is_dir():
        if (problem := forbidden(path / SHARDS)) is not None:
            raise UserError(f"{path}: its {SHARDS}/{problem}")
        path = path / STATE
    try:
        content = _load(path, mmap=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a training checkpoint such as ba00001000.pt") from None
    except Exception as error:  # a truncated file can fail in any way
        raise UserError(f"{path}: cannot be read as a checkpoint ({_first_line(error)})") from None
    if not isinstance(content, dict) or content.keys() - {VERSION, AVERAGE} not in (WHOLE_KEYS, SHARDED_KEYS):
        raise UserError(f"{path}: not a training checkpoint; expected one such as ba00001000.pt")
    return content


def unreadable(value: Any) -> str | None:
    """Why `read_checkpoint` would refuse a value, such as an object of a user's class; None if it would not."""
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        _load(file)
    # Not RuntimeError: PyTorch raises one wherever the process is when a data worker dies.
    except (pickle.PickleError, TypeError, AttributeError, ValueError, NotImplementedError) as error:
        unsupported = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        return f"it holds a {unsupported.group(1)}" if unsupported else _first_line(error)
    return None


def _load(file: Any, **options: Any) -> Any:
    """Loads tensors, NumPy arrays and plain data; nothing else, and nothing is executed."""
    core = np._core if hasattr(np, "_core") else np.core  # type: ignore[attr-defined]  # NumPy 2 and 1
    allowed = [
        np.ndarray,
        np.dtype,
        core.multiarray._reconstruct,
        type(np.dtype(np.uint32)),
        datetime.timedelta,
        torch.torch_version.TorchVersion,
    ]
    with torch.serialization.safe_globals(allowed):
        return torch.load(file, map_location="cpu", weights_only=True, **options)


def _first_line(error: Exception) -> str:
    """PyTorch's messages go on with advice, in colours, for the author of the file."""
    return (str(error) or repr(error)).splitlines()[0]


def newest_checkpoint(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest valid checkpoint and its content; None if the folder has no checkpoints.

    Raises:
        UserError: there are checkpoints, but none can be read. Starting a new run would hide that.
    """
    problems = []
    for path in list_checkpoints(folder):
        try:
            return path, read_checkpoint(path)
        except UserError as error:
            log.warning("%s; trying the checkpoint before it", error)
            problems.append(str(error))
    if problems:
        raise none_valid(folder, problems)
    return None


def none_valid(place: str | Path, problems: list[str]) -> UserError:
    return UserError(
        f"{place}: no checkpoint can be read: {'; '.join(problems)}. To start a new run, set autoresume=false or "
        "another save_folder"
    )
