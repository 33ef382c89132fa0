"""Copies save folders to an S3 store, in a thread of one rank of each machine, so that training does not wait.

Each machine uploads the sharded checkpoints' files that are in its save folder; machines with the same folder divide
them. A machine then reports in the store. Rank 0 waits for the reports of all machines before it writes the record,
without which a checkpoint is ignored, and rank 0 uploads everything else.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.utils import dist

from ugt_composer.checkpoint.machines import ONE_MACHINE, Machines
from ugt_composer.checkpoint.remote import BESIDE, record_name, stored_checkpoints
from ugt_composer.checkpoint.upload_parts import Part, machine_of, parts_of
from ugt_composer.errors import RunError
from ugt_composer.storage.at_once import for_each
from ugt_composer.storage.record import CorruptedRecordError, first_corruption, parse_record
from ugt_composer.storage.s3 import MissingError, Store, StoreError

log = logging.getLogger(__name__)
POLL = 1.0  # seconds between two looks for the reports of other machines
STATE_POLL = 0.5  # seconds between two exchanges of all machines' states, at the end of a run


@dataclass
class Call:
    """One call of `send`: what the save folder had then."""

    parts: list[Part]
    open_files: ExitStack
    newest_only: bool


class Uploads:
    """Uploads the files of the save folder that the store does not have yet, each time that `send` is called.

    One part at a time: first the files beside the checkpoints, then the checkpoints, older ones first, several files of
    one at once. While rank 0 waits for other machines to upload theirs, a further call is served. A call during an
    upload is queued and replaces one that is queued already; checkpoints that the rotation has deleted by then are not
    uploaded.

    A process that is about to end calls `send(newest_only=True)`: after the checkpoint that is being uploaded now, the
    store gets the newest one, and no other.

    Args:
        keep: the number of valid checkpoints to keep in the store.
        corrupted: names of checkpoints in the store that are known to be corrupted.
        machines: of the job; machines other than the first upload only sharded checkpoints.
        common: returns those of a sharded checkpoint's files that every rank reads: with a folder each, every machine
            has them, and the first one uploads them.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        keep: int,
        corrupted: set[str],
        machines: Machines = ONE_MACHINE,
        common: Callable[[Collection[str]], set[str]] = lambda names: set(),
    ):
        self.common = common
        self.store, self.folder, self.keep = store, folder, keep
        self.machines = machines
        self.corrupted = set(corrupted)
        self.uploading: str | None = None  # the part being uploaded, which must not be deleted now
        self.is_complete = False  # the store has everything of the last call
        self.failure: str | None = None  # error message of the last attempt
        self._late: str | None = None  # the machines that rank 0 waits for
        self._may_wait = True  # False: the other machines have finished
        self._versions: dict[str, str] = {}  # {part's name: version} of the parts that the store is known to have
        self._missing: list[str] = []
        self._waiting: dict[str, Part] = {}  # checkpoints that lack only the files of other machines
        self._queued: Call | None = None
        self._busy = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def send(self, newest_only: bool = False) -> None:
        """Uploads the present content of the folder in the background.

        Args:
            newest_only: leaves older checkpoints, also those of an earlier call, to a later one.

        Raises:
            OSError: the folder cannot be read.
        """
        open_files = ExitStack()
        parts = parts_of(self.folder, self.machines, self.common, open_files, newest_only)
        with self._changed:
            if self._queued is not None:
                self._queued.open_files.close()
            self._queued, self.is_complete, self._may_wait = Call(parts, open_files, newest_only), False, True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="uploads")
                self._thread.start()
            self._changed.notify_all()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits up to `seconds` for the uploads. Returns whether the store has everything."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_idle, seconds)
            return self.is_complete

    def missing(self) -> str:
        """A message that names what the store does not have."""
        with self._changed:
            queued = [] if self._queued is None else self._outdated(self._queued.parts)
            names = dict.fromkeys([*self._missing, *queued])
            problem = self.failure or self._late
        missing = [name for name in names if name not in BESIDE] or list(names)
        reason = f" ({problem})" if problem else ""
        return f"{self.store.url} does not have {', '.join(missing)}{reason}"

    def finish(self) -> None:
        """Waits until the store has everything; retries once what failed before. For a job on one machine.

        Raises:
            RunError: naming the store and what it does not have.
        """
        self.wait()
        if not self.is_complete:
            self.send()
            if not self.wait():
                raise RunError(self.final_failure())

    def final_failure(self) -> str:
        return f"{self.missing()}; it is in {self.folder}: run the same command to try again"

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being uploaded or waited for."""
        with self._changed:
            return self._is_idle

    @property
    def _is_idle(self) -> bool:
        return self._queued is None and not self._busy

    def stop_waiting(self) -> None:
        """The other machines have finished: reports that are not in the store now will not come."""
        with self._changed:
            self._may_wait = False
            self._changed.notify_all()

    def _outdated(self, parts: list[Part]) -> list[str]:
        return [part.name for part in parts if self._versions.get(part.name) != part.version]

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queued is not None)
                assert self._queued is not None
                call, self._queued, self._busy = self._queued, None, True
                self._missing = self._outdated(call.parts)
            try:
                self._upload_missing(call)
                failure = None
            except Exception as error:  # a failed upload must not end the thread
                reason = str(error) if isinstance(error, StoreError) else f"{self.store.url}: {error!r}"
                failure = reason.splitlines()[0]
            call.open_files.close()
            with self._changed:
                self._busy, self.uploading, self.failure = False, None, failure
                self._late = None
                self.is_complete = failure is None and self._queued is None
                self._changed.notify_all()
            if failure is not None:
                log.warning("%s; it is in the save folder, and the next save tries again", self.missing())

    def _upload_missing(self, call: Call) -> None:
        listing = self.store.list()
        current = {part.name: part.version for part in call.parts}
        if call.newest_only:
            current = {name: part.version for name, part in self._waiting.items()} | current
        self._waiting = {
            name: part
            for name, part in self._waiting.items()
            if current.get(name) == part.version and part.open.keys() <= listing.keys()
        }
        for part in call.parts:
            if self._is_ending and not call.newest_only:
                return
            self.uploading = part.name
            if part.name in self._waiting:
                continue
            if not self._is_uploaded(part, listing) and self._upload_files(part, listing):
                if part.reports:
                    self._waiting[part.name] = part
                    continue
                self._complete(part)
            self._set_present(part)
        self.uploading = None
        if self._wait_for_machines(call.parts) and self.machines.number == 0 and not call.newest_only:
            try:
                self._rotate()
            except StoreError as error:
                log.warning("%s; checkpoints that need not be kept are deleted after the next save", error)

    @property
    def _is_ending(self) -> bool:
        with self._changed:
            return self._queued is not None and self._queued.newest_only

    def _set_present(self, part: Part) -> None:
        with self._changed:
            self._missing = [name for name in self._missing if name != part.name]

    def _is_uploaded(self, part: Part, listing: dict[str, int]) -> bool:
        marks = {part.last} if part.complete is None else {part.last, record_name(part.name)}
        if part.name in self.corrupted or not part.open.keys() <= listing.keys() or not marks & listing.keys():
            return False
        if part.name not in self._versions:
            completed = part.complete is not None and self._has(record_name(part.name), part.complete, listing)
            if completed or self._has(part.last, part.content, listing):
                self._versions[part.name] = part.version
        return self._versions.get(part.name) == part.version

    def _has(self, name: str, content: bytes, listing: dict[str, int]) -> bool:
        try:
            return listing.get(name) == len(content) and self.store.read_bytes(name) == content
        except MissingError:  # another machine has deleted it since
            return False

    def _upload_files(self, part: Part, listing: dict[str, int]) -> bool:
        """Uploads all but the last. Until that is there the files do not match the old one, so readers ignore them.
        False if a checkpoint was deleted by the rotation, or is corrupted, as logged when the run was resumed."""
        self._versions.pop(part.name, None)

        def put(file: tuple[str, Callable[[], Any]]) -> None:
            name, opened = file
            with opened() as content:
                self.store.put(name, content)

        if first_corruption(part.folder, part.record) is not None:
            return False
        if part.complete is not None and record_name(part.name) in listing:
            self.store.delete([record_name(part.name)])  # of other files: the checkpoint is incomplete until the end
        try:
            for_each(part.open.items(), put)
        except FileNotFoundError:
            return False
        return True

    def _complete(self, part: Part) -> None:
        self.store.put(part.last, part.content)
        self._versions[part.name] = part.version
        self.corrupted.discard(part.name)

    def _wait_for_machines(self, parts: list[Part]) -> bool:
        """Completes each checkpoint when all machines have reported their files. False if `send` was called meanwhile.

        Raises:
            StoreError: the other machines have finished without the newest of `parts`.
        """
        names = [part.name for part in parts if part.complete is not None]
        while waiting := [name for name in names if name in self._waiting]:
            is_last_look = not self._may_wait
            late: set[str] = set()
            for part in list(self._waiting.values()):
                lacking = self._lacking_reports(part)
                if not lacking:
                    self._complete(part)
                    self._set_present(part)
                    del self._waiting[part.name]
                elif part.name in names:
                    late.update(lacking)
            waiting = [name for name in waiting if name in self._waiting]
            numbers = ", ".join(sorted({machine_of(name) for name in late}, key=int))
            with self._changed:
                self._late = f"machine {numbers} has not uploaded all of its files" if waiting else None
                if is_last_look and waiting:
                    self._give_up(waiting, names[-1])
                    return True
                self._changed.wait_for(lambda: self._queued is not None or not self._may_wait, POLL if waiting else 0)
                if waiting and self._queued is not None:
                    return False
        return True

    def _lacking_reports(self, part: Part) -> list[str]:
        listing = self.store.list(part.name)
        expected = {name: content for name, content in part.reports.items() if name not in part.received}
        part.received |= {name for name, content in expected.items() if self._has(name, content, listing)}
        lacking = [name for name in expected if name not in part.received]
        return list(part.reports) if not lacking and self._lacks_files(part, listing) else lacking

    def _give_up(self, waiting: list[str], newest: str) -> None:
        """Another machine may have deleted its part of an older checkpoint before it could be uploaded."""
        if newest in waiting:
            raise StoreError(str(self._late))
        for name in waiting:
            log.warning("%s/%s stays incomplete (%s); there is a newer one", self.store.url, name, self._late)
            self._set_present(self._waiting.pop(name))

    def _lacks_files(self, part: Part, listing: dict[str, int]) -> bool:
        """Whether a file of any machine is missing from the store, or has another size than recorded."""
        assert part.complete is not None
        sizes = ((listing.get(f"{part.name}/{n}"), facts) for n, facts in parse_record(part.complete).items())
        return any(size not in [f.size for f in facts] for size, facts in sizes)

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


def finish_all(uploads: Uploads | None, machines: Machines) -> None:
    """Waits until the store has the files of all machines; retries once what failed. A collective.

    Args:
        uploads: of one rank of each machine; None on the others.

    Raises:
        RunError: on every rank that has uploads, or on all if there are several machines.
    """
    if machines.count == 1:
        if uploads is not None:
            uploads.finish()
        return
    failures: list[str] = []
    for attempt in range(2):
        if attempt and uploads is not None and not uploads.is_complete:
            uploads.send()
        while True:
            # Short collectives, whose timeouts an upload of any length cannot exceed.
            is_busy = [number for number in dist.all_gather_object(_busy_machine(uploads)) if number is not None]
            if not is_busy:
                break
            if is_busy == [0] and uploads is not None:
                uploads.stop_waiting()
            time.sleep(STATE_POLL)
        failure = None if uploads is None or uploads.is_complete else uploads.final_failure()
        failures = [one for one in dist.all_gather_object(failure) if one]
        if not failures:
            return
    raise RunError("; ".join(failures))


def _busy_machine(uploads: Uploads | None) -> int | None:
    return None if uploads is None or uploads.is_idle else uploads.machines.number
