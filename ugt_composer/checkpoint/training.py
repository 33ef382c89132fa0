"""Training checkpoints on disk: whole or absent, rotated, the newest readable one found again."""

import datetime
import logging
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ugt_composer.errors import UserError

log = logging.getLogger(__name__)
KEYS = {"state", "rng", "config", "data"}
_NAME = re.compile(r"ba(\d{8,})\.pt")


def checkpoint_path(folder: str | Path, batch: int) -> Path:
    return Path(folder) / f"ba{batch:08d}.pt"


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder, newest first, whichever process wrote them."""
    found = [path for path in Path(folder).glob("ba*.pt") if _NAME.fullmatch(path.name)]
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


def rotate(folder: str | Path, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints, and what killed saves left behind."""
    for path in list_checkpoints(folder)[keep:]:
        path.unlink(missing_ok=True)
    for path in Path(folder).glob("ba*.pt.tmp"):
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
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a training checkpoint such as ba00001000.pt") from None
    except Exception as error:  # a torn file can fail in any way
        reason = (str(error) or repr(error)).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a checkpoint ({reason})") from None
    if not isinstance(content, dict) or content.keys() != KEYS:
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
