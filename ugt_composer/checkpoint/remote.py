"""A run's files in an S3 store, fetched to resume from or moved aside; and portable models, fetched to be loaded."""

import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from ugt_composer.checkpoint.run_checkpoints import corruption_of, none_valid
from ugt_composer.checkpoint.save_folder import (
    CONFIG,
    EVENTS,
    METRICS,
    PORTABLE,
    RUN_ID,
    batch_of,
    is_checkpoint_name,
    list_checkpoints,
)
from ugt_composer.errors import UserError
from ugt_composer.storage.at_once import for_each
from ugt_composer.storage.file_lock import locked
from ugt_composer.storage.record import (
    RECORD,
    CorruptedRecordError,
    Record,
    first_corruption,
    parse_record,
    put_in_place,
)
from ugt_composer.storage.s3 import MissingError, Store
from ugt_composer.storage.s3_url import is_url

log = logging.getLogger(__name__)
BESIDE = (METRICS, EVENTS, RUN_ID)
PAUSES = (0.0, 0.5, 2.0)  # seconds before each attempt at files that do not fit their record


class CorruptedError(Exception):
    """Files in a store that do not match their record. The message says which and how."""


def record_name(checkpoint: str) -> str:
    return f"{checkpoint}.{RECORD}" if checkpoint.endswith(".pt") else f"{checkpoint}/{RECORD}"


def stored_checkpoints(listing: dict[str, int]) -> list[str]:
    """The names of the checkpoints, complete or not, in the listing of a store, newest first."""
    names = {name.split("/")[0].removesuffix(f".{RECORD}") for name in listing}
    return sorted(filter(is_checkpoint_name, names), key=lambda name: batch_of(Path(name)), reverse=True)


def fetch_newest(store: Store, folder: Path) -> set[str]:
    """Fetches the newest valid checkpoint of the store, and the files beside it, unless the folder has one as new.

    Returns:
        The names of the checkpoints that are corrupted in the store.

    Raises:
        StoreError: the store does not answer.
        UserError: there are checkpoints, but none is valid.
    """
    listing = store.list()
    fetch_run_id(store, folder, listing)
    local, stored = {path.name: path for path in list_checkpoints(folder)}, stored_checkpoints(listing)
    problems: list[str] = []
    corrupted: set[str] = set()
    for name in sorted({*local, *stored}, key=lambda name: batch_of(Path(name)), reverse=True):
        if name in local:
            if (corruption := corruption_of(local[name])) is None:
                return corrupted
            problems.append(f"{local[name]}: {corruption}")
        if name not in stored:
            continue
        if record_name(name) not in listing:
            log.warning(
                "%s/%s: has no record, so its upload was never finished; trying the checkpoint before it",
                store.url,
                name,
            )
            continue
        try:
            fetch_checkpoint(store, folder, name, listing)
        except CorruptedError as error:
            log.warning("%s/%s: %s; trying the checkpoint before it", store.url, name, error)
            problems.append(f"{store.url}/{name}: {error}")
            corrupted.add(name)
            continue
        log.warning("%s/%s: fetched, to resume from it", store.url, name)
        return corrupted
    if problems:
        raise none_valid(f"{folder}, {store.url}", problems)
    return corrupted


def fetch_checkpoint(store: Store, folder: Path, name: str, listing: dict[str, int]) -> None:
    """Renames the checkpoint last: after a kill before that, the next start fetches it again."""
    temporary = folder / f"{name}.fetched.tmp"
    try:
        record = _fetch_recorded(store, record_name(name), temporary)
        fetch_beside(store, folder, listing)
        if name.endswith(".pt"):
            (temporary / name).rename(folder / f"{name}.tmp")
            put_in_place(folder / record_name(name), {name: record[name][0]})
        else:
            from ugt_composer.checkpoint.sharded import put_folder_in_place

            put_folder_in_place(temporary, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fetch_beside(store: Store, folder: Path, listing: dict[str, int]) -> None:
    """Fetches what rank 0's save folder has beside the checkpoints: the portable models, the metrics, the run's id."""
    for model in PORTABLE:
        if f"{model}/{RECORD}" in listing:
            _fetch_portable(store, folder, model)
    for beside in BESIDE:
        if beside in listing:
            _fetch_one_beside(store, folder, beside)


def fetch_run_id(store: Store, folder: Path, listing: Collection[str]) -> None:
    """The id of the run that the store has, unless the folder has one."""
    if RUN_ID in listing and not (folder / RUN_ID).exists():
        _fetch_one_beside(store, folder, RUN_ID)


def _fetch_portable(store: Store, folder: Path, name: str) -> None:
    temporary = folder / f"{name}.fetched.tmp"
    try:
        record = _fetch_recorded(store, f"{name}/{RECORD}", temporary)
        (folder / name).mkdir(exist_ok=True)
        for file in record:
            (temporary / file).rename(folder / name / f"{file}.tmp")
        put_in_place(folder / name / RECORD, {file: facts[0] for file, facts in record.items()})
    except CorruptedError as error:
        log.warning("%s/%s: %s; the run will write it again", store.url, name, error)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fetch_one_beside(store: Store, folder: Path, name: str) -> None:
    temporary = folder / f"{name}.fetched.tmp"
    try:
        store.fetch(name, temporary)
        os.replace(temporary, folder / name)
    finally:
        temporary.unlink(missing_ok=True)


def _fetch_recorded(store: Store, record_name: str, folder: Path) -> Record:
    """Fetches a record and its files into an empty folder, and verifies them.

    Raises:
        CorruptedError: they do not match after several attempts; a single mismatch may come from an upload under way.
        MissingError: there is no record.
    """
    corruption, is_folder = "", record_name.split("/")[-1] == RECORD
    above = record_name.removesuffix(RECORD) if is_folder else ""
    for pause in PAUSES:
        time.sleep(pause)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        text = store.read_bytes(record_name)
        try:
            record = parse_record(text)
        except CorruptedRecordError as error:
            corruption = f"its {RECORD} {error}"
            continue
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in record):
            raise CorruptedError(f"its {RECORD} names files outside its folder")
        try:
            fetch_files(store, above, folder, record)
        except MissingError as error:
            corruption = str(error)
            continue
        (folder / RECORD).write_bytes(text)
        if (mismatch := first_corruption(folder, record)) is None:
            return record
        corruption = " ".join(mismatch) if is_folder else mismatch[1]
    raise CorruptedError(corruption)


def fetch_files(store: Store, above: str, folder: Path, names: Iterable[str]) -> None:
    """Downloads `names`, several at once. `above` comes before each name in the store.

    Raises:
        MissingError: "its NAME is missing" from the store.
    """

    def fetch(name: str) -> None:
        try:
            store.fetch(f"{above}{name}", folder / name)
        except MissingError:
            raise MissingError(f"its {name} is missing") from None

    names = list(names)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for_each(names, fetch)


def set_stored_aside(store: Store) -> str | None:
    """Moves the files of an earlier run in the store to `earlier-1`, `earlier-2`, …; returns None if there are none.

    Records are deleted from their old place first: without its record, a partly moved checkpoint is ignored.
    """
    listing = store.list()
    names = [n for n in listing if n in (METRICS, EVENTS, CONFIG) or n.split("/")[0] in PORTABLE]
    for checkpoint in stored_checkpoints(listing):
        names += [n for n in listing if n in (checkpoint, record_name(checkpoint)) or n.startswith(f"{checkpoint}/")]
    if not names:
        return None
    names += [n for n in listing if n == RUN_ID]  # a new run has another one
    taken = {name.split("/")[0] for name in listing}
    target = next(f"earlier-{n}" for n in range(1, len(taken) + 2) if f"earlier-{n}" not in taken)
    for name in names:
        store.copy(name, f"{target}/{name}")
    store.delete(sorted(names, key=lambda name: not name.endswith(RECORD)))
    return f"{store.url}/{target}"


def model_folder(place: str | Path) -> Path:
    """The local folder of a portable model: `place` itself, or for `s3://…/best` a verified copy on this machine.

    Raises:
        UserError: the store has no such model, or it is corrupted.
        StoreError: the store does not answer.
    """
    if not is_url(str(place)):
        return Path(place)
    try:
        store = Store(str(place))
    except ValueError as error:
        raise UserError(f"the model's folder {error}") from None
    key = hashlib.sha256(store.url.encode()).hexdigest()[:32]
    folder = Path(tempfile.gettempdir()) / f"ugt-composer-{os.getuid()}" / "models" / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.parents[1].stat().st_uid != os.getuid():
            raise UserError(f"{folder.parents[1]} belongs to another user; set TMPDIR to a folder that you own")
        with locked(folder.with_name(f"{key}.lock")):
            return _cached(store, folder)
    except MissingError as error:
        raise UserError(f"{error}; expected a model with its {RECORD}, such as s3://bucket/prefix/best") from None
    except CorruptedError as error:
        raise UserError(f"{store.url}: {error}; it is corrupted, or was replaced meanwhile: try again") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); set TMPDIR to another folder") from None


def _cached(store: Store, folder: Path) -> Path:
    """Fetches the model unless its current version is cached. One folder per version; earlier ones are deleted."""
    version = _version(store.read_bytes(RECORD))
    path = folder / version
    if path.is_dir():
        try:
            if first_corruption(path, parse_record((path / RECORD).read_bytes())) is None:
                return path
        except (OSError, CorruptedRecordError):
            pass
    temporary = folder / "fetched.tmp"
    _fetch_recorded(store, RECORD, temporary)
    path = folder / _version((temporary / RECORD).read_bytes())
    for old in folder.iterdir():
        if old != temporary:
            shutil.rmtree(old, ignore_errors=True)
    temporary.rename(path)
    return path


def _version(record: bytes) -> str:
    return hashlib.sha256(record).hexdigest()[:16]
