"""Finds the checkpoint to resume from when machines have save folders of their own: the newest of which every machine
has its part, or can download it."""

import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from composer.utils import dist

from ugt_composer.checkpoint import remote
from ugt_composer.checkpoint.machines import Machines
from ugt_composer.checkpoint.rank0_errors import save_on_leaders, save_on_rank_0
from ugt_composer.checkpoint.remote import (
    CorruptedError,
    fetch_beside,
    fetch_checkpoint,
    fetch_files,
    record_name,
)
from ugt_composer.checkpoint.run_checkpoints import ALL_MACHINES, INCOMPLETE, SHARDS, STATE, corruption_of, none_valid
from ugt_composer.checkpoint.save_folder import batch_of, list_checkpoints
from ugt_composer.checkpoint.sharded import put_folder_in_place, write_folder_record
from ugt_composer.checkpoint.untrusted import forbidden
from ugt_composer.checkpoint.whole_state import from_rank_0
from ugt_composer.parallelism.strategy import Strategy
from ugt_composer.storage.record import RECORD, CorruptedRecordError, Record, first_corruption, parse_record
from ugt_composer.storage.s3 import MissingError, Store

log = logging.getLogger(__name__)


@dataclass
class Stored:
    """What the store has.

    Attributes:
        listing: names and sizes of all objects.
        records: {checkpoint: its record} of those that were uploaded completely.
    """

    listing: dict[str, int]
    records: dict[str, bytes]


def agree_on_newest(store: Store | None, folder: Path, machines: Machines, strategy: Strategy) -> set[str]:
    """Every machine gets its part of the newest checkpoint for which that is possible. A collective.

    A machine's part are the files that its ranks read; rank 0's machine also gets `state.pt`, and from the store the
    files beside the checkpoints. Newer checkpoints, which some machine lacks, are renamed to `NAME.incomplete`.

    Returns:
        The names of the checkpoints that are corrupted in the store.

    Raises:
        RunError: on every rank, if a folder cannot be written or the store does not answer.
        UserError: on every rank, if there are checkpoints, but of none every machine can get its part.
    """
    stored = Stored({}, {})
    if store is not None:
        save_on_rank_0(folder, lambda: _look(store, folder, stored))
        stored = from_rank_0(stored)
    here = {path.name: _complete_record(path) for path in list_checkpoints(folder)} if machines.is_leader else {}
    versions: dict[str, list[bytes]] = {}
    for records in [*dist.all_gather_object(here), stored.records]:
        for name, record in records.items():
            versions.setdefault(name, []).append(record)
    newest, problems, corrupted = None, list[str](), set[str]()
    for name in sorted(versions, key=lambda name: batch_of(Path(name)), reverse=True):
        for version in dict.fromkeys(versions[name]):
            outcome: list[str | None] = []

            def attempt(name: str = name, version: bytes = version, outcome: list = outcome) -> None:
                outcome.append(_get(name, version, store, stored, folder, machines, strategy))

            save_on_leaders(folder, machines, attempt)
            failed = [f"{place}: {problem}" for place, problem in _gathered(folder, outcome) if problem]
            if not failed:
                newest = name
                break
            if version == stored.records.get(name):
                corrupted.add(name)
            problems += failed
            if dist.get_global_rank() == 0:
                log.warning("%s: %s; trying the checkpoint before it", name, "; ".join(failed))
        if newest is not None:
            break
    if newest is None and problems:
        if store is None:
            problems.append("give each machine the --node_rank that it had, or copy the files to its save_folder")
        raise none_valid(folder, problems)
    if newest is not None:
        batch = batch_of(Path(newest))
        save_on_leaders(folder, machines, lambda: _set_newer_aside(folder, batch))
    return corrupted


def _look(store: Store, folder: Path, stored: Stored) -> None:
    stored.listing.update(store.list())
    remote.fetch_run_id(store, folder, stored.listing)
    for name in remote.stored_checkpoints(stored.listing):
        if record_name(name) in stored.listing:
            stored.records[name] = store.read_bytes(record_name(name))
        else:
            log.warning("%s/%s: has no record, so its upload was never finished", store.url, name)


def _gathered(folder: Path, outcome: list[str | None]) -> list[tuple[str, str | None]]:
    place = f"machine {dist.get_node_rank()}, {folder}"
    return [(place, one) for place, outcomes in dist.all_gather_object((place, outcome)) for one in outcomes]


def _complete_record(path: Path) -> bytes:
    """The record of all files of a checkpoint in this folder; empty if it has none."""
    for record in (path / ALL_MACHINES, path.parent / record_name(path.name)):
        if record.exists():
            return record.read_bytes()
    return b""


def _get(
    name: str,
    version: bytes,
    store: Store | None,
    stored: Stored,
    folder: Path,
    machines: Machines,
    strategy: Strategy,
) -> str | None:
    """Puts this folder's part of a checkpoint in place. Returns what is wrong with it, or None."""
    path, has_rank_0 = folder / name, 0 in machines.sharing
    if name.endswith(".pt"):
        if not has_rank_0:
            return None
        if path.exists() and _complete_record(path) == version and corruption_of(path) is None:
            return None
        if store is None or stored.records.get(name) != version:
            return "is missing or corrupted"
        try:
            fetch_checkpoint(store, folder, name, stored.listing)
        except (CorruptedError, MissingError) as error:
            return str(error)
        log.warning("%s/%s: fetched, to resume from it", store.url, name)
        return None
    try:
        record = parse_record(version)
    except CorruptedRecordError as error:
        return f"its {RECORD} {error}"
    if any(Path(file).is_absolute() or ".." in Path(file).parts for file in record):
        return f"its {RECORD} names files outside its folder"
    read = strategy.shards_read([file for file in record if file.startswith(f"{SHARDS}/")], machines.ranks)
    needed = {file: facts for file, facts in record.items() if file in read or (file == STATE and has_rank_0)}
    lacking = [file for file in needed if first_corruption(path, {file: needed[file]}) is not None]
    if lacking:
        # Files may be in the store without a record: other files of the checkpoint were not uploaded before a kill.
        sizes = {file: stored.listing.get(f"{name}/{file}") for file in lacking}
        absent = [file for file, size in sizes.items() if size not in [facts.size for facts in record[file]]]
        if store is None or absent:
            return f"its {(absent or lacking)[0]} is missing or corrupted"
        problem = _fetch_part(name, needed, lacking, record, store, folder, machines)
        if problem is not None:
            return problem
        if STATE in lacking:  # before this start, another machine had rank 0
            fetch_beside(store, folder, stored.listing)
        log.warning("%s/%s: %d of %d files fetched, to resume from it", store.url, name, len(lacking), len(record))
    if (problem := forbidden(path / SHARDS)) is not None:
        return f"its {SHARDS}/{problem}"
    return None


def _fetch_part(
    name: str,
    needed: Record,
    lacking: list[str],
    record: Record,
    store: Store,
    folder: Path,
    machines: Machines,
) -> str | None:
    """Puts valid files of this folder and downloaded ones together in a new folder, which then gets the name."""
    temporary = folder / f"{name}.fetched.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for file in needed.keys() - set(lacking):
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(folder / name / file, temporary / file)
        corruption: str | None = None
        for pause in remote.PAUSES:
            time.sleep(pause)
            try:
                fetch_files(store, f"{name}/", temporary, lacking)
            except MissingError as error:
                corruption = str(error)
                continue
            mismatch = first_corruption(temporary, {file: needed[file] for file in lacking})
            if mismatch is None:
                write_folder_record(temporary, needed, record, machines)
                put_folder_in_place(temporary, folder / name)
                return None
            corruption = f"its {' '.join(mismatch)}"
        return corruption
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _set_newer_aside(folder: Path, batch: int) -> None:
    """Otherwise the rotation would count them as newer than those of the resumed run."""
    for path in list_checkpoints(folder):
        if batch_of(path) > batch:
            aside = path.with_name(path.name + INCOMPLETE)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            log.warning("%s: not every machine has its valid part; renamed to %s", path, aside.name)
