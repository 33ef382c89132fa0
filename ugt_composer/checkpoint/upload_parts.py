"""What a machine uploads from its save folder: files that belong together, and the one that marks them as complete."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from ugt_composer.checkpoint.machines import Machines
from ugt_composer.checkpoint.remote import BESIDE, record_name
from ugt_composer.checkpoint.run_checkpoints import ALL_MACHINES
from ugt_composer.checkpoint.save_folder import PORTABLE, list_checkpoints
from ugt_composer.storage.record import RECORD, Record, parse_record
from ugt_composer.storage.s3 import Store


@dataclass
class Part:
    """Files that are uploaded together: first the files in any order, and last the one that marks the part as complete.

    Attributes:
        name: such as `best`, `ba00001000.pt`, `metrics.jsonl`.
        last: the name of the record, or of the only file.
        content: of `last`, at the time when `send` was called.
        open: {name: opens the file} of the other files; raises FileNotFoundError if rotation has deleted it meanwhile.
        folder, record: of a checkpoint's files that this machine uploads, which are verified before.
        reports: {name: content} of what other machines write when they have uploaded their files; `last` comes after.
        complete: the record of the whole checkpoint; once the store has it, nothing of this part is missing.
        received: the names of the reports that have come.
    """

    name: str
    last: str
    content: bytes
    open: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    folder: Path = Path()
    record: Record = field(default_factory=dict)
    reports: Mapping[str, bytes] = field(default_factory=dict)
    complete: bytes | None = None
    received: set[str] = field(default_factory=set)

    @property
    def version(self) -> str:
        return xxhash.xxh64_hexdigest(self.content)


def parts_of(
    folder: Path,
    machines: Machines,
    common: Callable[[Collection[str]], set[str]],
    open_files: ExitStack,
    newest_only: bool,
) -> list[Part]:
    """First the files beside the checkpoints, on the first machine; then the checkpoints, older ones first.

    Args:
        common: see `Uploads`.
        open_files: closes the files of portable models when they are uploaded.
        newest_only: leaves out older checkpoints.

    Raises:
        OSError: the folder cannot be read.
    """
    is_first = machines.number == 0
    small = [folder / name for name in ("config.yaml", *BESIDE)] if is_first else []
    parts = [Part(path.name, path.name, path.read_bytes()) for path in small if path.exists()]
    for name in PORTABLE if is_first else ():
        record = folder / name / RECORD
        if not record.exists():
            continue
        content = record.read_bytes()
        # Opened now, because training may replace these files during the upload.
        files = [(f, open_files.enter_context((folder / name / f).open("rb"))) for f in parse_record(content)]
        opened: dict[str, Callable[[], Any]] = {f"{name}/{f}": partial(nullcontext, file) for f, file in files}
        parts.append(Part(name, f"{name}/{RECORD}", content, opened))
    checkpoints = [path for path in list_checkpoints(folder) if path.is_dir() or is_first]
    checkpoints = [path for path in checkpoints if (folder / record_name(path.name)).exists()]
    newest = checkpoints[:1] if newest_only else checkpoints
    return parts + [_checkpoint_part(path, machines, common) for path in reversed(newest)]


def _checkpoint_part(path: Path, machines: Machines, common: Callable[[Collection[str]], set[str]]) -> Part:
    record_path, is_folder = path.parent / record_name(path.name), path.is_dir()
    complete = record_path.read_bytes()
    record = parse_record(complete)
    if ALL_MACHINES in record:
        complete = (path / ALL_MACHINES).read_bytes()
        del record[ALL_MACHINES]
    if machines.are_separate and 0 not in machines.sharing:
        record = {name: record[name] for name in record.keys() - common(record)}
    above = f"{path.name}/" if is_folder else ""
    place, parts = (machines.sharing.index(machines.number), len(machines.sharing)) if is_folder else (0, 1)
    record = {name: record[name] for name in sorted(record)[place::parts]}
    opened = {f"{above}{name}": partial(open, record_path.parent / name, "rb") for name in record}
    reports = {_report_name(path.name, n): _report(complete, machines) for n in range(machines.count)}
    own_report = _report_name(path.name, machines.number)
    if machines.number > 0:
        content = reports[own_report]
        return Part(path.name, own_report, content, opened, record_path.parent, record, complete=complete)
    del reports[own_report]
    others = reports if is_folder else {}
    return Part(path.name, record_name(path.name), complete, opened, record_path.parent, record, others, complete)


def _report_name(checkpoint: str, machine: int) -> str:
    return f"{checkpoint}/uploaded-by-{machine}.json"


def _report(complete: bytes, machines: Machines) -> bytes:
    """It belongs to one version of a checkpoint: one of the same batch may be written again after a restart."""
    return json.dumps({"record": xxhash.xxh64_hexdigest(complete), "machines": machines.count}).encode()


def machine_of(report: str) -> str:
    return report.rsplit("-", 1)[1].removesuffix(".json")


def delete_reports(store: Store, checkpoints: Iterable[str]) -> None:
    for checkpoint in checkpoints:
        reports = (name for name in store.list(checkpoint) if re.fullmatch(r"uploaded-by-\d+\.json", Path(name).name))
        store.delete(reports)
