"""Detects the kind of a file or folder from its name and content."""

import zipfile
from pathlib import Path

from ugt_composer.checkpoint.portable import CONFIG, WEIGHTS
from ugt_composer.checkpoint.run_checkpoints import SHARDS, STATE
from ugt_composer.checkpoint.save_folder import METRICS, PORTABLE, is_checkpoint_name, list_checkpoints
from ugt_composer.data.integrity import INDEX_NAME, MANIFEST_NAME
from ugt_composer.errors import UserError
from ugt_composer.storage.record import RECORD

MODEL, CHECKPOINT, RUN, SHARD_FOLDER, CATALOGUE = "model", "training checkpoint", "run", "shards", "catalogue"
EXPECTED = (
    "expected a model (best/, latest/), a training checkpoint (ba00001000.pt), a run's save_folder, a folder of MDS "
    "shards, or a catalogue in JSON Lines"
)
MOST_NAMED = 5  # folders of a known kind within one that is of none


def kind_of(path: Path) -> str:
    """Raises UserError for a path that does not exist or is of none of these kinds."""
    if path.is_dir():
        kind = _kind_of_folder(path)
    elif path.is_file():
        kind = _kind_of_file(path)
    else:
        raise UserError(f"{path}: no such file or folder; {EXPECTED}")
    if kind is None:
        folders = [one for one in path.iterdir() if one.is_dir()] if path.is_dir() else []
        inner = sorted(str(folder) for folder in folders if _kind_of_folder(folder))
        meant = f"; did you mean {', '.join(inner[:MOST_NAMED])}?" if inner else ""
        raise UserError(f"{path}: unknown kind of file or folder; {EXPECTED}{meant}")
    return kind


def _kind_of_folder(path: Path) -> str | None:
    def has(*names: str) -> bool:
        return any((path / name).exists() for name in names)

    if has(MANIFEST_NAME, INDEX_NAME):
        return SHARD_FOLDER
    if is_checkpoint_name(path.name) or has(STATE, SHARDS):
        return CHECKPOINT
    if has(WEIGHTS, RECORD):
        return MODEL
    if list_checkpoints(path) or has(*PORTABLE, METRICS, CONFIG):
        return RUN
    return None


def _kind_of_file(path: Path) -> str | None:
    if path.suffix == ".npz":  # a zip file too
        return None
    if is_checkpoint_name(path.name) or path.suffix == ".pt" or zipfile.is_zipfile(path):
        return CHECKPOINT
    if ".jsonl" in path.suffixes or (".json" in path.suffixes and not _is_indented_json(path)):
        return CATALOGUE
    return None


def _is_indented_json(path: Path) -> bool:
    """Whether it is one JSON value over several lines, as reports are, and not a value per line."""
    with path.open("rb") as file:
        return file.readline(10).strip() in (b"{", b"[")
