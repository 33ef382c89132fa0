"""`record.json`: sizes and hashes of a checkpoint's files as they were written, to detect corrupted ones.

The record of a folder is in the folder and is copied with it; that of a single file is beside it. Imports no torch.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import xxhash

from ugt_composer.storage.hashed_file import file_hash
from ugt_composer.storage.sync import forget_cached, sync_folder

RECORD = "record.json"
ALGORITHM = "xxh64"


class CorruptedRecordError(ValueError):
    """A record that is corrupted or cannot be read. The message says why."""


@dataclass(frozen=True)
class Facts:
    """Size in bytes and hash of one file."""

    size: int
    hash: str


# Keyed by the file's path relative to the record. A file that is being replaced has two entries, both of them valid.
Record = dict[str, list[Facts]]


def record_beside(path: Path) -> Path:
    """The path of a single file's record: `ba00001000.pt.record.json`."""
    return path.with_name(f"{path.name}.{RECORD}")


def facts_of(path: Path) -> Facts:
    """Reads the whole file, in blocks."""
    return Facts(path.stat().st_size, file_hash(ALGORITHM, path))


def read_record(path: Path) -> Record | None:
    """Reads a record; None if there is none.

    Raises:
        CorruptedRecordError: it cannot be read or is corrupted.
    """
    try:
        return parse_record(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CorruptedRecordError(f"cannot be read ({error.strerror})") from None


def parse_record(text: bytes) -> Record:
    """Parses a record. Raises CorruptedRecordError if it is not one or does not match its own hash."""
    try:
        content = json.loads(text)
        files, recorded_hash = content["files"], content[ALGORITHM]
        record = {name: [Facts(int(f["bytes"]), str(f[ALGORITHM])) for f in facts] for name, facts in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CorruptedRecordError("is not a record of a checkpoint's files") from None
    if recorded_hash != _hash_of(files):
        raise CorruptedRecordError("is corrupted or was changed")
    return record


def write_record(path: Path, record: Record) -> None:
    """Writes a record or replaces one atomically: after a kill, the old or the new one is there."""
    files = {name: [{"bytes": f.size, ALGORITHM: f.hash} for f in facts] for name, facts in sorted(record.items())}
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"files": files, ALGORITHM: _hash_of(files)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def _hash_of(files: object) -> str:
    return xxhash.xxh64_hexdigest(json.dumps(files, sort_keys=True).encode())


def put_in_place(record: Path, files: dict[str, Facts]) -> None:
    """Renames `NAME.tmp` to `NAME` for each of a record's files.

    The record matches the files at any moment: until all are renamed, it accepts both the old and the new ones.
    """
    folder = record.parent
    earlier = {name: _current_facts(record, name) for name in files}
    added = [name for name in files if not earlier[name] and any(earlier.values())]
    for name in added:  # files that no record lists yet do not matter to readers
        os.replace(folder / f"{name}.tmp", folder / name)
    write_record(record, {name: [*earlier[name], facts] for name, facts in files.items()})
    for name in files:
        if name in added:
            continue
        os.replace(folder / f"{name}.tmp", folder / name)
    sync_folder(folder)
    if any(earlier.values()):
        write_record(record, {name: [facts] for name, facts in files.items()})


def _current_facts(record: Path, name: str) -> list[Facts]:
    path = record.parent / name
    if not path.is_file():
        return []
    try:
        recorded = (read_record(record) or {}).get(name)
    except CorruptedRecordError:
        recorded = None
    return recorded or [facts_of(path)]


def first_corruption(folder: Path, record: Record, sizes_only: bool = False) -> tuple[str, str] | None:
    """(file, what is wrong with it) for the first file that does not match the record; None if all match.

    Args:
        sizes_only: skips the hashes, which require reading the files.
    """
    for name, accepted in record.items():  # all sizes first: they are cheap to check
        if (corruption := _size_mismatch(folder / name, accepted)) is not None:
            return name, corruption
    for name, accepted in () if sizes_only else record.items():
        if (corruption := _hash_mismatch(folder / name, accepted)) is not None:
            return name, corruption
    return None


def _size_mismatch(path: Path, accepted: list[Facts]) -> str | None:
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if any(size == facts.size for facts in accepted):
        return None
    return f"has {size} bytes, {RECORD} records {_listed([str(facts.size) for facts in accepted])}"


def _hash_mismatch(path: Path, accepted: list[Facts]) -> str | None:
    try:
        actual = facts_of(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if actual in accepted:
        return None
    recorded = _listed([facts.hash for facts in accepted])
    return f"has the {ALGORITHM} {actual.hash}, {RECORD} records {recorded}"


def _listed(values: list[str]) -> str:
    return " or ".join(dict.fromkeys(values)) or "none"


def read_back(path: Path) -> Facts:
    """Size and hash of a file just written, read from the disk instead of the page cache as far as possible."""
    forget_cached(path)
    return facts_of(path)
