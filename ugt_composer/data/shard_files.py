"""The shards of one data folder on this machine: each is verified before its first row is read."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from streaming.base.compression import decompress
from streaming.base.storage import CloudDownloader

from ugt_composer.data.integrity import ADVICE, FileFacts, ShardFacts, corruption, read_index
from ugt_composer.errors import UserError, first_line
from ugt_composer.storage.file_lock import locked

log = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT = 60.0  # seconds, for one file
PAUSES = (0.5, 2.0)  # seconds before the second and the third attempt at a store that does not answer


class ShardFiles:
    """Checks shards against the index of their folder; downloads missing or corrupted ones if there is a remote.

    Safe in any number of threads and processes, of this run and of others that use the same folder: a file gets its
    name only when it is complete, and only one process of the machine downloads it.
    """

    def __init__(self, folder: str | Path, remote: str | None):
        self.folder, self.remote = Path(folder), remote
        self.shards: dict[str, ShardFacts] = {shard.raw.name: shard for shard in read_index(self.folder)}
        self.keeps_zipped = is_only_copy(folder, remote)

    def corruption(self, name: str) -> str | None:
        """What is wrong with the file `name`, which holds the rows of a shard; None if it is valid."""
        return corruption(self.folder / name, self.shards[name].raw)

    def ensure(self, name: str) -> int:
        """Makes sure that the shard whose rows are in the file `name` is present and valid.

        Returns:
            The bytes by which the folder has grown.

        Raises:
            UserError: it is missing or corrupted and cannot be downloaded, or is corrupted in the store too.
        """
        shard = self.shards[name]
        problem = self.corruption(name)
        if problem is None:
            return 0
        if self.remote is None and shard.zipped is None:
            raise UserError(f"{self.folder / name}: {problem}; {ADVICE}")
        try:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / f"{name}.lock"):
                return self._fix(shard)
        except OSError as error:
            raise UserError(f"{self.folder / name}: {problem}, and cannot be written ({error.strerror})") from None

    def _fix(self, shard: ShardFacts) -> int:
        path, before = self.folder / shard.raw.name, self._bytes(shard)
        if self.corruption(shard.raw.name) is None:  # another process has fixed it meanwhile
            return 0
        stored = self._valid_stored_file(shard)
        if shard.zipped is not None:
            _unpack(stored, path, shard)
            if not self.keeps_zipped:
                stored.unlink()
        return self._bytes(shard) - before

    def _valid_stored_file(self, shard: ShardFacts) -> Path:
        """The file that the conversion wrote, downloaded if it is missing or corrupted."""
        path = self.folder / shard.stored.name
        problem = corruption(path, shard.stored)
        if problem is None:
            return path
        if self.remote is None:
            raise UserError(f"{path}: {problem}; {ADVICE}")
        if path.exists():
            log.warning("%s: %s; downloading it again", path, problem)
        problem = fetch(self.remote, path, shard.stored.name, lambda part: corruption(part, shard.stored))
        if problem is not None:
            raise UserError(
                f"{_join(self.remote, shard.stored.name)}: {problem}; upload the data again, or empty {self.folder} if "
                "the remote holds other data now"
            )
        return path

    def _bytes(self, shard: ShardFacts) -> int:
        files: list[FileFacts] = [file for file in (shard.raw, shard.zipped) if file is not None]
        return sum(file.size for file in files if (self.folder / file.name).exists())


def is_only_copy(folder: str | Path, remote: str | None) -> bool:
    """Whether files that are removed from the folder cannot be downloaded again."""
    return remote is None or Path(remote).absolute() == Path(folder).absolute()


def _unpack(stored: Path, path: Path, shard: ShardFacts) -> None:
    part = _part(path)
    try:
        part.write_bytes(decompress(shard.compression, stored.read_bytes()))
    except OSError:
        raise
    except Exception as error:  # each format raises its own error types
        raise UserError(f"{stored}: cannot be unpacked ({first_line(error)}); {ADVICE}") from None
    if (problem := corruption(part, shard.raw)) is not None:
        part.unlink()
        raise UserError(f"{stored}: the file unpacked from it {problem}; {ADVICE}")
    os.replace(part, path)


def fetch(remote: str, path: Path, name: str, check: Callable[[Path], str | None]) -> str | None:
    """Downloads a file of a store to `path`, completely or not at all; tries once more if `check` finds it corrupted.

    The caller holds the lock of `path`.

    Returns:
        None, or what `check` finds wrong with the second copy; `path` is then left unchanged.

    Raises:
        UserError: the store has no such file or does not answer.
    """
    part, problem = _part(path), None
    for _ in range(2):
        _download(_join(remote, name), part)
        problem = check(part)
        if problem is None:
            os.replace(part, path)
            return None
    part.unlink()
    return problem


def _download(source: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    for pause in (*PAUSES, None):
        target.unlink(missing_ok=True)  # Streaming downloads nothing if the file exists
        try:
            CloudDownloader.direct_download(source, str(target), DOWNLOAD_TIMEOUT)
            return
        except Exception as error:  # each store raises its own error types
            if pause is None or isinstance(error, FileNotFoundError | ValueError | ImportError):
                raise UserError(f"{source}: cannot be fetched ({first_line(error)})") from None
            log.warning("%s: %s; retrying in %g s", source, first_line(error), pause)
            time.sleep(pause)


def _join(remote: str, name: str) -> str:
    return f"{remote.rstrip('/')}/{name}"


def _part(path: Path) -> Path:
    """Where a file is written until it is complete. Always the same name, so that leftovers are overwritten."""
    return path.with_name(f"{path.name}.part")
