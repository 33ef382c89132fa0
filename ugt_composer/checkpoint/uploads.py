"""Copies the save folder to an S3 store, in a thread of rank 0, so that training does not wait."""

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from ugt_composer.checkpoint.remote import BESIDE, PORTABLE, record_name, stored_checkpoints
from ugt_composer.checkpoint.run_checkpoints import corruption_of, is_checkpoint_name, list_checkpoints
from ugt_composer.errors import RunError
from ugt_composer.storage.record import RECORD, CorruptedRecordError, parse_record
from ugt_composer.storage.s3 import MissingError, Store, StoreError

log = logging.getLogger(__name__)


@dataclass
class Part:
    """Files that are uploaded together: first the files in any order, and last the one that marks the part as complete.

    Attributes:
        name: such as `best`, `ba00001000.pt`, `metrics.jsonl`.
        last: the name of the record, or of the only file.
        content: of `last`, at the time when `send` was called.
        open: {name: opens the file} of the other files; raises FileNotFoundError if rotation has deleted it meanwhile.
    """

    name: str
    last: str
    content: bytes
    open: Mapping[str, Callable[[], Any]] = field(default_factory=dict)

    @property
    def version(self) -> str:
        return xxhash.xxh64_hexdigest(self.content)


class Uploads:
    """Uploads the files of the save folder that the store does not have yet, each time that `send` is called.

    One upload runs at a time: first the files beside the checkpoints, then the checkpoints, older ones first, each with
    its record last. A call during an upload is queued and replaces one that is queued already; checkpoints that the
    rotation has deleted by then are not uploaded.

    Args:
        keep: the number of valid checkpoints to keep in the store.
        corrupted: names of checkpoints in the store that are known to be corrupted.
    """

    def __init__(self, store: Store, folder: Path, keep: int, corrupted: set[str]):
        self.store, self.folder, self.keep = store, folder, keep
        self.corrupted = set(corrupted)
        self.uploading: str | None = None  # the part being uploaded, which must not be deleted now
        self.is_complete = False  # the store has everything of the last call
        self.failure: str | None = None  # error message of the last attempt
        self._versions: dict[str, str] = {}  # {part's name: version} of the parts that the store is known to have
        self._missing: list[str] = []
        self._queued: tuple[list[Part], ExitStack] | None = None
        self._busy = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def send(self) -> None:
        """Uploads the present content of the folder in the background.

        Raises:
            OSError: the folder cannot be read.
        """
        open_files = ExitStack()
        parts = self._parts(open_files)
        with self._changed:
            if self._queued is not None:
                self._queued[1].close()
            self._queued, self.is_complete = (parts, open_files), False
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="uploads")
                self._thread.start()
            self._changed.notify_all()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits up to `seconds` for the uploads. Returns whether the store has everything."""
        with self._changed:
            self._changed.wait_for(lambda: self._queued is None and not self._busy, seconds)
            return self.is_complete

    def missing(self) -> str:
        """A message that names what the store does not have."""
        with self._changed:
            queued = [] if self._queued is None else self._outdated(self._queued[0])
            names = dict.fromkeys([*self._missing, *queued])
        missing = [name for name in names if name not in BESIDE] or list(names)
        reason = f" ({self.failure})" if self.failure else ""
        return f"{self.store.url} does not have {', '.join(missing)}{reason}"

    def finish(self) -> None:
        """Waits until the store has everything; retries once what failed before.

        Raises:
            RunError: naming the store and what it does not have.
        """
        self.wait()
        if not self.is_complete:
            self.send()
            if not self.wait():
                raise RunError(f"{self.missing()}; it is in {self.folder}: run the same command to try again")

    def _parts(self, open_files: ExitStack) -> list[Part]:
        small = [self.folder / name for name in ("config.yaml", *BESIDE)]
        parts = [Part(path.name, path.name, path.read_bytes()) for path in small if path.exists()]
        for name in PORTABLE:
            record = self.folder / name / RECORD
            if not record.exists():
                continue
            content = record.read_bytes()
            # Opened now, because training may replace these files during the upload.
            files = [(f, open_files.enter_context((self.folder / name / f).open("rb"))) for f in parse_record(content)]
            opened: dict[str, Callable[[], Any]] = {f"{name}/{f}": partial(nullcontext, file) for f, file in files}
            parts.append(Part(name, f"{name}/{RECORD}", content, opened))
        for path in reversed(list_checkpoints(self.folder)):
            record = self.folder / record_name(path.name)
            if not record.exists():
                continue
            content, above = record.read_bytes(), f"{path.name}/" if path.is_dir() else ""
            opened = {f"{above}{f}": partial(open, self.folder / f"{above}{f}", "rb") for f in parse_record(content)}
            parts.append(Part(path.name, record_name(path.name), content, opened))
        return parts

    def _outdated(self, parts: list[Part]) -> list[str]:
        return [part.name for part in parts if self._versions.get(part.name) != part.version]

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queued is not None)
                assert self._queued is not None
                (parts, open_files), self._queued, self._busy = self._queued, None, True
                self._missing = self._outdated(parts)
            try:
                self._upload_missing(parts)
                failure = None
            except Exception as error:  # a failed upload must not end the thread
                reason = str(error) if isinstance(error, StoreError) else f"{self.store.url}: {error!r}"
                failure = reason.splitlines()[0]
            open_files.close()
            with self._changed:
                self._busy, self.uploading, self.failure = False, None, failure
                self.is_complete = failure is None and self._queued is None
                self._changed.notify_all()
            if failure is not None:
                log.warning("%s; it is in the save folder, and the next save tries again", self.missing())

    def _upload_missing(self, parts: list[Part]) -> None:
        listing = self.store.list()
        for part in parts:
            self.uploading = part.name
            if not self._is_uploaded(part, listing):
                self._upload(part)
            self._missing = [name for name in self._missing if name != part.name]
        self.uploading = None
        self._rotate()

    def _is_uploaded(self, part: Part, listing: dict[str, int]) -> bool:
        if part.name in self.corrupted or not {part.last, *part.open} <= listing.keys():
            return False
        if part.name not in self._versions and listing[part.last] == len(part.content):
            self._versions[part.name] = xxhash.xxh64_hexdigest(self.store.read_bytes(part.last))
        return self._versions.get(part.name) == part.version

    def _upload(self, part: Part) -> None:
        """Uploads the record last: until then the files do not match the old one, so readers ignore them."""
        self._versions.pop(part.name, None)
        if is_checkpoint_name(part.name) and corruption_of(self.folder / part.name) is not None:
            return  # deleted by the rotation, or corrupted, as logged when the run was resumed
        try:
            for name, opened in part.open.items():
                with opened() as file:
                    self.store.put(name, file)
        except FileNotFoundError:
            return
        self.store.put(part.last, part.content)
        self._versions[part.name] = part.version
        self.corrupted.discard(part.name)

    def _rotate(self) -> None:
        """Deletes what is older than the newest `keep` complete checkpoints, whoever uploaded it."""
        listing, kept = self.store.list(), 0
        for name in stored_checkpoints(listing):
            if kept < self.keep:
                kept += self._has_all_files(name, listing)
                continue
            files = [n for n in listing if n == name or n.startswith(f"{name}/")]
            self.store.delete([record_name(name), *files])  # the record first: without it the checkpoint is ignored
            self._versions.pop(name, None)

    def _has_all_files(self, name: str, listing: dict[str, int]) -> bool:
        if name in self.corrupted or record_name(name) not in listing:
            return False
        try:
            record = parse_record(self.store.read_bytes(record_name(name)))
        except (CorruptedRecordError, MissingError):
            return False
        above = "" if name.endswith(".pt") else f"{name}/"
        return all(listing.get(f"{above}{n}") in [f.size for f in facts] for n, facts in record.items())
