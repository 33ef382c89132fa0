"""`ugt recommend --out`: the lists of all users of large files, on any number of ranks."""

import argparse
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ugt_composer.checkpoint.portable import weights_hash
from ugt_composer.checkpoint.remote import model_folder
from ugt_composer.cli.history_files import HASH, HistoryFile, history_files, no_histories
from ugt_composer.cli.recommend import USERS_PER_PART, Setup, warn_of_missing_lists
from ugt_composer.cli.recommendation_files import WRITERS
from ugt_composer.cli.recommendation_parts import Part, PartFolder, Record, parts_of
from ugt_composer.errors import RunError, UserError
from ugt_composer.inference.recommender import batched
from ugt_composer.job.ranks import Ranks
from ugt_composer.storage.hashed_file import file_hash
from ugt_composer.terminal import ProgressBar

T = TypeVar("T")


class Plan(NamedTuple):
    """
    Attributes:
        job: everything that decides the lists.
        parts: all of them.
        finished: the records of those that an earlier start has finished.
    """

    job: dict[str, Any]
    parts: list[Part]
    finished: dict[int, Record]


def write_lists(arguments: argparse.Namespace, setup: Setup, ranks: Ranks) -> None:
    """Writes the parts that are not finished yet, each on one rank, and then the index.

    In each step a rank makes the lists of a batch. All ranks take equally many steps, so that one that ended or failed
    ends the others soon.
    """
    if ranks.size == 1:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Composer's import took it, to exit without a word
    folder = PartFolder(Path(arguments.out), arguments.out_format or "jsonl")
    files = ranks.agree(lambda: history_files(arguments.history))
    job, parts, finished = ranks.from_first(lambda: _plan(arguments, setup, folder, files))
    ranks.agree(folder.check_shared)
    todo = [part for part in parts if part.number not in finished]
    own = todo[ranks.number :: ranks.size]
    most_batches = max((-(-part.users // setup.batch_size) for part in todo), default=0)
    most_steps = most_batches + 1  # in the last one the part is published
    records: dict[int, Record] = {}
    before, began = sum(record.users for record in finished.values()), time.monotonic()
    total = sum(part.users for part in parts)
    with ProgressBar("recommending", total, "users", before, is_hidden=not ranks.is_first) as bar:
        for turn in range(-(-len(todo) // ranks.size)):
            batches = _write_part(own[turn], files, setup, folder, records) if turn < len(own) else iter(())
            for _ in range(most_steps):
                try:
                    users = next(batches, 0)
                except UserError as error:
                    ranks.step(error=error)
                    raise
                ranks.step(users)
                bar.update_to(before + ranks.total)
        ranks.finish()
        bar.update_to(total)
    seconds = time.monotonic() - began
    for of_rank in ranks.exchange(records):
        finished |= of_rank
    if ranks.is_first:
        written = [finished[part.number] for part in parts]
        folder.complete(job, written)
        _report(arguments, setup, written, total - before, len(parts) - len(todo), seconds)


def _plan(arguments: argparse.Namespace, setup: Setup, folder: PartFolder, files: Sequence[HistoryFile]) -> Plan:
    """Reads the files once, and prepares the folder for the parts."""
    history = Path(arguments.history)
    if history.is_dir() and folder.out.resolve().is_relative_to(history.resolve()):
        raise UserError(f"--out {folder.out} lies inside --history {history}; name a folder outside of it")
    folder.check()
    users_per_part = arguments.users_per_part or USERS_PER_PART
    scans = [file.scan(users_per_part) for file in files]
    if not any(scan.users for scan in scans):
        raise no_histories(arguments.history)
    evaluation = setup.config.evaluation
    has_neighbours = evaluation.item_neighbours is not None and evaluation.neighbour_weight > 0
    model = model_folder(arguments.checkpoint)
    job = {
        "--history": [[Path(file.path).name, scan.users, scan.hash] for file, scan in zip(files, scans, strict=True)],
        "--checkpoint": [weights_hash(model), _hash(model / "config.yaml")],
        "--catalogue": None if setup.catalogue is None else _hash(setup.catalogue.source),
        **{option: None if path is None else _hash(path) for option, path in _list_files(arguments)},
        "-k": arguments.k,
        "--beam-width": arguments.beam_width,
        "--include-seen": arguments.include_seen,
        "--item-score-weight": evaluation.item_score_weight,
        "--item-neighbours": _hash(str(evaluation.item_neighbours)) if has_neighbours else None,
        "--neighbour-weight": evaluation.neighbour_weight,
        "--max-history": setup.max_history,
        "--batch-size": setup.batch_size,
        "--users-per-part": users_per_part,
        "--out-format": folder.format,
    }
    parts = parts_of(scans, users_per_part)
    return Plan(job, parts, folder.begin(job, parts, arguments.overwrite))


def _list_files(arguments: argparse.Namespace) -> list[tuple[str, str | None]]:
    return [("--only", arguments.only), ("--exclude", arguments.exclude)]


def _hash(path: str | Path) -> str:
    return f"{HASH}:{file_hash(HASH, Path(path))}"


def _write_part(
    part: Part, files: Sequence[HistoryFile], setup: Setup, folder: PartFolder, records: dict[int, Record]
) -> Iterator[int]:
    """Writes a part, yields the number of users after each batch, and adds the part's record when it is published.

    Raises:
        UserError: a history is not valid, or the file has changed.
        RunError: the folder cannot be written.
    """
    record = Record(folder.name(part), part.users)
    remarks: dict[str, tuple[int, str]] = record.remarks
    has_lists: Counter[str] = Counter()
    read = 0
    try:
        writer = WRITERS[folder.format](folder.temporary(part), has_items=setup.catalogue is not None)
        histories = islice(files[part.file].read(setup.reader, part.start), part.users)
        for users in _read_ahead(batched(histories, setup.batch_size)):
            has_lists.update(name for user in users for name in user.lists)
            lists = list(setup.maker.lists(users))
            for user_id, _, of_user in lists:
                for about, sentence in of_user:
                    count, first = remarks.get(about, (0, f"{user_id}: {sentence}"))
                    remarks[about] = count + 1, first
            writer.write(lists)
            read += len(users)
            yield len(users)
        writer.close()
        if read != part.users:
            raise UserError(f"{files[part.file].path}: has changed since the start; run the same command again")
        record.lists |= has_lists
        folder.publish(part, record)
    except OSError as error:
        raise RunError(
            f"--out {folder.out}: {record.name} cannot be written ({error.strerror}); the finished parts are kept: run "
            "the same command again to resume"
        ) from None
    records[part.number] = record


def _read_ahead(batches: Iterator[T]) -> Iterator[T]:
    """Yields the batches while a thread reads the next one, so that a GPU does not wait for it."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = thread.submit(next, batches, None)
            yield batch


def _report(
    arguments: argparse.Namespace, setup: Setup, records: Sequence[Record], users: int, before: int, seconds: float
) -> None:
    """What was written, and what is unusual about the users' histories and lists.

    Args:
        users: of the parts that were written in `seconds`.
        before: parts that were finished before.
    """
    total = sum(record.users for record in records)
    resumed = f", {before:,} of them finished before" if before else ""
    rate = f"; {users / seconds:,.0f} users/s" if users else ""
    parts = "1 part" if len(records) == 1 else f"{len(records):,} parts"
    print(f"{arguments.out}: {total:,} users in {parts}{resumed}{rate}")
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    has_lists: Counter[str] = Counter()
    for record in records:
        has_lists.update(record.lists)
        for about, (count, example) in record.remarks.items():
            counts[about] += count
            first.setdefault(about, example)
    for about, count in counts.items():
        print(f"{count:,} of {total:,} users {about}, the first: {first[about]}", file=sys.stderr)
    warn_of_missing_lists(arguments, setup, has_lists)
