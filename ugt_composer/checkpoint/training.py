"""Training checkpoints on disk: whole or absent, rotated, the newest readable one found again.

A checkpoint is a file, `ba00001000.pt`, or with `checkpoint.sharded` a folder, `ba00001000`, of every rank's part.
"""

import datetime
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.utils import dist

from ugt_composer.errors import UserError
from ugt_composer.parallelism.strategy import Strategy

log = logging.getLogger(__name__)
LIGHT_KEYS = {"state", "scaler", "rng", "config", "data"}
WHOLE_KEYS = LIGHT_KEYS | {"model", "optimizer"}
SHARDED_KEYS = LIGHT_KEYS | {"sharded"}
SHARDS, STATE = "shards", "state.pt"  # in the folder of a sharded checkpoint
_NAME = re.compile(r"ba(\d{8,})(\.pt)?")


def checkpoint_path(folder: str | Path, batch: int, sharded: bool = False) -> Path:
    return Path(folder) / f"ba{batch:08d}{'' if sharded else '.pt'}"


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder, newest first, whichever process wrote them."""
    found = [path for path in Path(folder).glob("ba*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=batch_of, reverse=True)


def batch_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match.group(1))


def write_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Writes beside the target, flushes to the disk, renames: a kill leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_sharded(path: Path, light: dict[str, Any], strategy: Strategy) -> None:
    """Every rank writes its part into one folder, which gets its name when all are done. A collective."""
    temporary = path.with_name(path.name + ".tmp")
    if dist.get_global_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    strategy.save_sharded(temporary / SHARDS)
    dist.barrier()
    if dist.get_global_rank() == 0:
        write_checkpoint(temporary / STATE, light)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    dist.barrier()


def rotate(folder: str | Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints, and what killed saves left behind."""
    for path in list_checkpoints(folder)[keep:]:
        # A folder first loses its name, so that a kill in between leaves none that looks whole.
        path = path.rename(path.with_name(path.name + ".tmp")) if path.is_dir() else path
        _remove(path)
    for path in Path(folder).glob("ba*.tmp"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def set_aside(folder: str | Path) -> Path | None:
    """Moves what an earlier run left in a folder to `earlier-1`, `earlier-2`, …; None where there is nothing.

    A run that starts afresh beside old checkpoints would have its own rotated away, as those of fewer batches.
    """
    names = ("best", "latest", "metrics.jsonl", "config.yaml")
    old = [*list_checkpoints(folder), *(Path(folder) / name for name in names if (Path(folder) / name).exists())]
    if not old:
        return None
    taken = {path.name for path in Path(folder).glob("earlier-*")}
    target = Path(folder) / next(f"earlier-{n}" for n in range(1, len(taken) + 2) if f"earlier-{n}" not in taken)
    target.mkdir()
    for path in old:
        path.rename(target / path.name)
    return target


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Tensors and plain data only: nothing in the file is executed.

    Raises:
        UserError: the file is missing, cut short or no checkpoint.
    """
    path = Path(path) / STATE if Path(path).is_dir() else Path(path)
    core = np._core if hasattr(np, "_core") else np.core  # type: ignore[attr-defined]  # NumPy 2 and 1
    allowed = [
        np.ndarray,
        np.dtype,
        core.multiarray._reconstruct,
        type(np.dtype(np.uint32)),
        datetime.timedelta,
        torch.torch_version.TorchVersion,
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a training checkpoint such as ba00001000.pt") from None
    except Exception as error:  # a torn file can fail in any way
        reason = (str(error) or repr(error)).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a checkpoint ({reason})") from None
    if not isinstance(content, dict) or content.keys() not in (WHOLE_KEYS, SHARDED_KEYS):
        raise UserError(f"{path}: is no training checkpoint; expected one such as ba00001000.pt")
    return content


def newest_checkpoint(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable checkpoint and its content; None where there is none at all.

    Raises:
        UserError: there are checkpoints and none can be read. Starting again from nothing would hide that.
    """
    problems = []
    for path in list_checkpoints(folder):
        try:
            return path, read_checkpoint(path)
        except UserError as error:
            log.warning("%s; trying the one before", error)
            problems.append(str(error))
    if problems:
        raise UserError(
            f"{folder}: no checkpoint can be read: {'; '.join(problems)}. To start afresh, set autoresume=false or "
            "another save_folder"
        )
    return None
