"""The folder of `ugt recommend --out`: parts of a fixed number of users, and index.json once all of them are finished.

    index.json            format, users, job, and of each part name, users, bytes and hash
    part-00000.jsonl      the users of a part of one input file, in its order; or .parquet
    .progress/            until then: job.json (what decides the lists), and a record of each finished part

A part appears under its name when it is complete. Its lists depend neither on the number of ranks nor on the parts that
were finished before, because its batches are its own.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from ugt_composer.cli.history_files import HASH, Scan, Start
from ugt_composer.cli.recommendation_files import WRITERS
from ugt_composer.errors import UserError
from ugt_composer.storage.hashed_file import file_hash
from ugt_composer.storage.sync import sync_file, sync_folder

INDEX, PROGRESS, JOB, LOCK = "index.json", ".progress", "job.json", "lock"
VERSION = 1
PART_NAME = re.compile(rf"part-\d{{5,}}\.({'|'.join(WRITERS)})")


class Part(NamedTuple):
    """
    Attributes:
        number: of the part, in the order of the input.
        file: number of the input file.
        start: where it begins there.
        users: how many.
    """

    number: int
    file: int
    start: Start
    users: int


@dataclass
class Record:
    """A finished part.

    Attributes:
        name, users, bytes, xxh3_128: of its file.
        remarks: by what they are about, how many users they concern, and the first of them.
        lists: of the optional lists of a history, how many users have each.
    """

    name: str
    users: int
    bytes: int = 0
    xxh3_128: str = ""
    remarks: dict[str, tuple[int, str]] = field(default_factory=dict)
    lists: dict[str, int] = field(default_factory=dict)


def parts_of(scans: Sequence[Scan], users_per_part: int) -> list[Part]:
    """The parts of all input files; none has users of two files."""
    parts: list[Part] = []
    for file, scan in enumerate(scans):
        for at, start in enumerate(scan.starts):
            users = min(users_per_part, scan.users - at * users_per_part)
            parts.append(Part(len(parts), file, start, users))
    return parts


class PartFolder:
    """The output folder of a job."""

    def __init__(self, out: Path, list_format: str):
        self.out, self.format = out, list_format
        self.progress = out / PROGRESS

    def begin(self, job: Mapping[str, Any], parts: Sequence[Part], overwrite: bool) -> dict[int, Record]:
        """Prepares the folder, and locks it until the process ends.

        Args:
            job: everything that decides the lists, by the names that messages show.
            overwrite: remove the parts of another job.

        Returns:
            The records of the parts that are finished and valid.

        Raises:
            UserError: the folder has parts of another job or files of another program, cannot be written, or another
                process writes to it.
        """
        self.check()
        earlier = self._earlier_job()
        if earlier is not None and (difference := _difference(earlier, job)) and not overwrite:
            raise UserError(
                f"--out {self.out} was begun with other inputs or options: {difference}; give those of the earlier "
                "start to resume it, --overwrite to replace its parts, or name another folder"
            )
        try:
            self.progress.mkdir(parents=True, exist_ok=True)
            self._lock()
            if earlier is not None and earlier != job:
                self._clear()
            finished = self._finished(parts)
            if len(finished) < len(parts):
                for record in finished.values():
                    self._write(self.progress / f"{record.name}.json", asdict(record))
                (self.out / INDEX).unlink(missing_ok=True)
            self._write(self.progress / JOB, job)
        except OSError as error:
            raise UserError(
                f"--out {self.out} cannot be written: {error.strerror}; name a folder that you may write"
            ) from None
        return finished

    def check(self) -> None:
        """UserError unless the folder is missing, empty or of this program."""
        if not self.out.exists():
            return
        if not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file; name a folder")
        for name in sorted(os.listdir(self.out)):
            if name not in (INDEX, PROGRESS) and not PART_NAME.fullmatch(name):
                raise UserError(
                    f"--out {self.out} holds {name}, which ugt recommend did not write; name another folder"
                )

    def check_shared(self) -> None:
        """UserError on a machine that does not see the folder of rank 0."""
        if not (self.progress / JOB).exists():
            raise UserError(f"--out {self.out} is not the same folder on all machines; name one that they share")

    def name(self, part: Part) -> str:
        return f"part-{part.number:05}.{self.format}"

    def temporary(self, part: Part) -> Path:
        """Where the part is written to before it is finished."""
        return self.progress / f"{self.name(part)}.tmp"

    def publish(self, part: Part, record: Record) -> None:
        """Gives a part that was written its name, and records it as finished."""
        temporary, path = self.temporary(part), self.out / record.name
        sync_file(temporary)
        record.bytes, record.xxh3_128 = temporary.stat().st_size, file_hash(HASH, temporary)
        os.replace(temporary, path)
        sync_folder(self.out)
        self._write(self.progress / f"{record.name}.json", asdict(record))

    def complete(self, job: Mapping[str, Any], records: Sequence[Record]) -> None:
        """Writes the index, and removes the records."""
        identity = xxhash.xxh3_128_hexdigest(json.dumps(job, sort_keys=True).encode())
        index = {
            "version": VERSION,
            "format": self.format,
            "users": sum(record.users for record in records),
            "fingerprint": f"{HASH}:{identity}",
            "job": job,
            "parts": [asdict(record) for record in records],
        }
        self._write(self.out / INDEX, index)
        shutil.rmtree(self.progress, ignore_errors=True)

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        """Writes a file of the folder atomically."""
        temporary = self.progress / f"{path.name}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)

    def _earlier_job(self) -> dict[str, Any] | None:
        for path, read in ((self.out / INDEX, lambda content: content["job"]), (self.progress / JOB, lambda job: job)):
            try:
                return dict(read(json.loads(path.read_text("utf-8"))))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}: cannot be read as that of recommendations ({error!r}); name another folder"
                ) from None
        if self.out.is_dir() and any(map(PART_NAME.fullmatch, os.listdir(self.out))):
            raise UserError(
                f"--out {self.out} holds parts, but not the {INDEX} that says what they are of; name another folder"
            )
        return None

    def _lock(self) -> None:
        descriptor = os.open(self.progress / LOCK, os.O_RDWR | os.O_CREAT, 0o666)  # until the process ends
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(
                f"--out {self.out} is being written by another process; wait for it, or name another folder"
            ) from None
        except OSError:
            pass  # a file system without locks

    def _clear(self) -> None:
        for path in (self.out / INDEX, *self.progress.iterdir(), *self.out.iterdir()):
            if path.name != LOCK and not path.is_dir():
                path.unlink(missing_ok=True)

    def _finished(self, parts: Sequence[Part]) -> dict[int, Record]:
        records = {record.name: record for record in self._records()}
        of_parts = {part.number: records[self.name(part)] for part in parts if self.name(part) in records}
        return {number: record for number, record in of_parts.items() if _is_valid(self.out / record.name, record)}

    def _records(self) -> Iterator[Record]:
        index = self.out / INDEX
        if index.exists():
            entries = json.loads(index.read_text("utf-8"))["parts"]
        else:
            paths = sorted(self.progress.glob("part-*.json"))
            entries = [json.loads(path.read_text("utf-8")) for path in paths]
        for entry in entries:
            yield Record(**entry)


def _is_valid(path: Path, record: Record) -> bool:
    return path.is_file() and path.stat().st_size == record.bytes and file_hash(HASH, path) == record.xxh3_128


def _difference(earlier: Mapping[str, Any], job: Mapping[str, Any]) -> str:
    """Which values of a job have changed, in words; empty if none have."""
    changes = []
    for name in dict.fromkeys([*earlier, *job]):
        before, now = earlier.get(name), job.get(name)
        if before == now:
            continue
        is_short = all(value is None or isinstance(value, bool | int | float | str) for value in (before, now))
        is_hash = any(isinstance(value, str) and value.startswith(f"{HASH}:") for value in (before, now))
        shown = f" was {json.dumps(before)}, is {json.dumps(now)}" if is_short and not is_hash else " has changed"
        changes.append(f"{name}{shown}")
    return ", ".join(changes)
