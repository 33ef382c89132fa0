"""The save folder in a store: copied there by a thread of rank 0, so that training does not wait."""

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from ugt_composer.checkpoint.remote import BESIDE, PORTABLE, record_name, stored_checkpoints
from ugt_composer.checkpoint.run_checkpoints import flaw_of, is_checkpoint_name, list_checkpoints
from ugt_composer.errors import RunError
from ugt_composer.storage.record import RECORD, DamagedRecordError, parse_record
from ugt_composer.storage.s3 import MissingError, Store, StoreError

log = logging.getLogger(__name__)


@dataclass
class Part:
    """What is uploaded together: its files in any order, and then what makes it count.

    Attributes:
        name: `best`, `ba00001000.pt`, `metrics.jsonl`.
        last: the name of the record, or of the only file.
        content: of `last`, as it was when the part was noted.
        open: opens the other files, by name. FileNotFoundError: it was rotated away before its turn.
    """

    name: str
    last: str
    content: bytes
    open: Mapping[str, Callable[[], Any]] = field(default_factory=dict)

    @property
    def version(self) -> str:
        return xxhash.xxh64_hexdigest(self.content)


class Uploads:
    """Brings to the store what the folder holds and the store lacks, each time that `send` is called.

    One upload at a time. What belongs to a checkpoint comes before it, its record after it, older checkpoints before
    newer ones. A call while another is under way waits for it and takes the place of one that waits already: what
    was rotated away by then is not uploaded.

    Args:
        keep: the number of checkpoints that stay in the store.
        damaged: names of checkpoints in the store that are known to be bad.
    """

    def __init__(self, store: Store, folder: Path, keep: int, damaged: set[str]):
        self.store, self.folder, self.keep = store, folder, keep
        self.damaged = set(damaged)
        self.uploading: str | None = None  # this name is not to be deleted now
        self.is_complete = False  # the store has what the last call was to bring there
        self.failure: str | None = None  # of the last attempt
        self._versions: dict[str, str] = {}  # of what the store has for certain, by the part's name
        self._missing: list[str] = []
        self._waiting: tuple[list[Part], ExitStack] | None = None
        self._busy = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def send(self) -> None:
        """Notes what is in the folder now, and uploads it in the background.

        Raises:
            OSError: the folder cannot be read.
        """
        held = ExitStack()
        parts = self._parts(held)
        with self._changed:
            if self._waiting is not None:
                self._waiting[1].close()
            self._waiting, self.is_complete = (parts, held), False
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="uploads")
                self._thread.start()
            self._changed.notify_all()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for what was sent. True where the store has all of it."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None and not self._busy, seconds)
            return self.is_complete

    def lacking(self) -> str:
        """One clause about what the store does not have."""
        with self._changed:
            waiting = [] if self._waiting is None else self._not_there(self._waiting[0])
            names = dict.fromkeys([*self._missing, *waiting])
        told = [name for name in names if name not in BESIDE] or list(names)
        reason = f" ({self.failure})" if self.failure else ""
        return f"{self.store.url} lacks {', '.join(told)}{reason}"

    def finish(self) -> None:
        """Waits until all is there, with another attempt at what failed before.

        Raises:
            RunError: naming the store and what it lacks.
        """
        self.wait()
        if not self.is_complete:
            self.send()
            if not self.wait():
                raise RunError(f"{self.lacking()}; {self.folder} has it: the same command tries again")

    def _parts(self, held: ExitStack) -> list[Part]:
        small = [self.folder / name for name in ("config.yaml", *BESIDE)]
        parts = [Part(path.name, path.name, path.read_bytes()) for path in small if path.exists()]
        for name in PORTABLE:
            record = self.folder / name / RECORD
            if not record.exists():
                continue
            content = record.read_bytes()
            # Opened now: the training replaces these files while they are uploaded.
            files = [(f, held.enter_context((self.folder / name / f).open("rb"))) for f in parse_record(content)]
            opened = {f"{name}/{f}": partial(_same, file) for f, file in files}
            parts.append(Part(name, f"{name}/{RECORD}", content, opened))
        for path in reversed(list_checkpoints(self.folder)):
            record = self.folder / record_name(path.name)
            if not record.exists():
                continue
            content, above = record.read_bytes(), f"{path.name}/" if path.is_dir() else ""
            opened = {f"{above}{f}": partial(open, self.folder / f"{above}{f}", "rb") for f in parse_record(content)}
            parts.append(Part(path.name, record_name(path.name), content, opened))
        return parts

    def _not_there(self, parts: list[Part]) -> list[str]:
        return [part.name for part in parts if self._versions.get(part.name) != part.version]

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None)
                assert self._waiting is not None
                (parts, held), self._waiting, self._busy = self._waiting, None, True
                self._missing = self._not_there(parts)
            try:
                self._bring(parts)
                failure = None
            except Exception as error:  # the thread outlives whatever happens to one upload
                reason = str(error) if isinstance(error, StoreError) else f"{self.store.url}: {error!r}"
                failure = reason.splitlines()[0]
            held.close()
            with self._changed:
                self._busy, self.uploading, self.failure = False, None, failure
                self.is_complete = failure is None and self._waiting is None
                self._changed.notify_all()
            if failure is not None:
                log.warning("%s; the save folder has it, and it is tried again with the next save", self.lacking())

    def _bring(self, parts: list[Part]) -> None:
        listing = self.store.list()
        for part in parts:
            self.uploading = part.name
            if not self._is_there(part, listing):
                self._upload(part)
            self._missing = [name for name in self._missing if name != part.name]
        self.uploading = None
        self._rotate()

    def _is_there(self, part: Part, listing: dict[str, int]) -> bool:
        if part.name in self.damaged or not {part.last, *part.open} <= listing.keys():
            return False
        if part.name not in self._versions and listing[part.last] == len(part.content):
            self._versions[part.name] = xxhash.xxh64_hexdigest(self.store.read_bytes(part.last))
        return self._versions.get(part.name) == part.version

    def _upload(self, part: Part) -> None:
        """What lay there before does not fit its own record while it is replaced, and so counts no more."""
        self._versions.pop(part.name, None)
        if is_checkpoint_name(part.name) and flaw_of(self.folder / part.name) is not None:
            return  # rotated away before its turn, or damaged, which the resume has told
        try:
            for name, opened in part.open.items():
                with opened() as file:
                    self.store.put(name, file)
        except FileNotFoundError:
            return
        self.store.put(part.last, part.content)
        self._versions[part.name] = part.version
        self.damaged.discard(part.name)

    def _rotate(self) -> None:
        """Deletes what is older than the newest checkpoints that are whole, of this process or another."""
        listing, kept = self.store.list(), 0
        for name in stored_checkpoints(listing):
            if kept < self.keep:
                kept += self._is_whole(name, listing)
                continue
            files = [n for n in listing if n == name or n.startswith(f"{name}/")]
            self.store.delete([record_name(name), *files])  # first of all it counts no more
            self._versions.pop(name, None)

    def _is_whole(self, name: str, listing: dict[str, int]) -> bool:
        if name in self.damaged or record_name(name) not in listing:
            return False
        try:
            record = parse_record(self.store.read_bytes(record_name(name)))
        except (DamagedRecordError, MissingError):
            return False
        above = "" if name.endswith(".pt") else f"{name}/"
        return all(listing.get(f"{above}{n}") in [f.size for f in facts] for n, facts in record.items())


def _same(file: BinaryIO) -> BinaryIO:
    return file
