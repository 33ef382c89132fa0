"""What a checkpoint's files were when they were written: `record.json`, by which a damaged one is told from a good one.

The record of a folder lies in it and travels with it; that of a single file lies beside it. Imports no torch.
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


class DamagedRecordError(ValueError):
    """A record that cannot be what was written. The message says why."""


@dataclass(frozen=True)
class Facts:
    """Of one file."""

    size: int
    hash: str


# By the file's path from the record's folder. Two facts while a file is replaced: either of them is good then.
Record = dict[str, list[Facts]]


def record_beside(path: Path) -> Path:
    """Where the record of a single file is: `ba00001000.pt.record.json`."""
    return path.with_name(f"{path.name}.{RECORD}")


def facts_of(path: Path) -> Facts:
    """Reads the whole file, in blocks."""
    return Facts(path.stat().st_size, file_hash(ALGORITHM, path))


def read_record(path: Path) -> Record | None:
    """None where there is none.

    Raises:
        DamagedRecordError: it cannot be read or is not as it was written.
    """
    try:
        return parse_record(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DamagedRecordError(f"cannot be read ({error.strerror})") from None


def parse_record(text: bytes) -> Record:
    """DamagedRecordError where this is no record as it was written."""
    try:
        content = json.loads(text)
        files, own = content["files"], content[ALGORITHM]
        record = {name: [Facts(int(f["bytes"]), str(f[ALGORITHM])) for f in found] for name, found in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedRecordError("is no record of a checkpoint's files") from None
    if own != _own_hash(files):
        raise DamagedRecordError("was damaged or changed")
    return record


def write_record(path: Path, record: Record) -> None:
    """Replaces a record by another; a kill leaves one of them."""
    files = {name: [{"bytes": f.size, ALGORITHM: f.hash} for f in found] for name, found in sorted(record.items())}
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"files": files, ALGORITHM: _own_hash(files)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def _own_hash(files: object) -> str:
    return xxhash.xxh64_hexdigest(json.dumps(files, sort_keys=True).encode())


def put_in_place(record: Path, files: dict[str, Facts]) -> None:
    """Renames `NAME.tmp` to `NAME` for each of a record's files.

    At no moment does the record contradict what lies there: it first speaks of the old files and the new ones.
    """
    folder = record.parent
    earlier = {name: _facts_now(record, name) for name in files}
    write_record(record, {name: [*earlier[name], facts] for name, facts in files.items()})
    for name in files:
        os.replace(folder / f"{name}.tmp", folder / name)
    sync_folder(folder)
    if any(earlier.values()):
        write_record(record, {name: [facts] for name, facts in files.items()})


def _facts_now(record: Path, name: str) -> list[Facts]:
    path = record.parent / name
    if not path.is_file():
        return []
    try:
        recorded = (read_record(record) or {}).get(name)
    except DamagedRecordError:
        recorded = None
    return recorded or [facts_of(path)]


def first_flaw(folder: Path, record: Record, sizes_only: bool = False) -> tuple[str, str] | None:
    """(file, what is wrong with it) of the first file that is not as recorded; None where all are.

    Args:
        sizes_only: leaves the hashes out, which cost a reading of the files.
    """
    for name, accepted in record.items():  # sizes of all first: they cost nothing
        if (flaw := _size_flaw(folder / name, accepted)) is not None:
            return name, flaw
    for name, accepted in () if sizes_only else record.items():
        if (flaw := _hash_flaw(folder / name, accepted)) is not None:
            return name, flaw
    return None


def _size_flaw(path: Path, accepted: list[Facts]) -> str | None:
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if any(size == facts.size for facts in accepted):
        return None
    return f"has {size} bytes, {RECORD} records {_listed([str(facts.size) for facts in accepted])}"


def _hash_flaw(path: Path, accepted: list[Facts]) -> str | None:
    try:
        found = facts_of(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if found in accepted:
        return None
    recorded = _listed([facts.hash for facts in accepted])
    return f"has the {ALGORITHM} {found.hash}, {RECORD} records {recorded}"


def _listed(values: list[str]) -> str:
    return " or ".join(dict.fromkeys(values)) or "none"


def read_back(path: Path) -> Facts:
    """The facts of a file just written, from the disk and not from what is still cached, as far as that can be had."""
    forget_cached(path)
    return facts_of(path)
