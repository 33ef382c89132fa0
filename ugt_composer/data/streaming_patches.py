"""Streaming's data set as this project uses it: Streaming orders the rows; reading, verifying and sharing are ours.

`PATCHES` names every private function of Streaming that is overridden, replaced or called; see
`ugt_composer/patches.py` and `docs/architecture.md`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_uint8
from functools import partial
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from time import time_ns
from typing import Any

import numpy as np
import streaming.base.dataset
from filelock import FileLock
from numpy.typing import NDArray
from streaming import Stream, StreamingDataset
from streaming.base.dataset import _ShardState
from streaming.base.format import Reader

from ugt_composer.config.schema import StreamConfig
from ugt_composer.data.collate import PackedRow
from ugt_composer.data.fetch_ahead import FetchAhead
from ugt_composer.data.shard_files import ShardFiles
from ugt_composer.data.shard_rows import OpenShards
from ugt_composer.data.shared_memory import shared_number
from ugt_composer.errors import UserError
from ugt_composer.patches import Patch

PADDING = -1  # Streaming's row number for an empty slot of the last batches
ROWS_AT_ONCE = 128
ATTEMPTS = 8  # to read a shard that another process keeps evicting from the cache


def file_name(shard: Reader) -> str:
    """Name of the file that the rows of a shard are read from."""
    return shard.file_pairs[0][0].basename


def file_path(shard: Reader) -> Path:
    return Path(shard.dirname, shard.split, file_name(shard))


@contextmanager
def own_segments() -> Iterator[None]:
    """Within this context, a new StreamingDataset gets a segment number that no other run uses or has used."""
    before = streaming.base.dataset.get_shm_prefix
    streaming.base.dataset.get_shm_prefix = shared_number
    try:
        yield
    finally:
        streaming.base.dataset.get_shm_prefix = before


class CheckedStream(Stream):
    """A stream whose shards are downloaded, unpacked and verified by `ShardFiles`."""

    def __init__(self, local: str, remote: str | None, proportion: float | None):
        super().__init__(local=local, remote=remote, proportion=proportion)
        self.files = ShardFiles(local, remote)

    def prepare_shard(self, shard: Reader) -> int:
        return self.files.ensure(file_name(shard))


class RowDataset(StreamingDataset):
    """Streams packed rows in a deterministic, resumable order. Keyword arguments are StreamingDataset's.

    Streaming determines the order and the position to resume at, but not how rows are read. Streaming handles each row
    three times, in two background threads and when it is read; if one of these fails, the epoch ends as if all rows had
    been read; and it checks hashes only when it downloads. Here many rows are read at once, each shard is verified
    before its first row is read, once per rank including its workers, and every error is raised by the iteration.
    """

    def __init__(self, **arguments: Any):
        with own_segments():
            super().__init__(**arguments)
        self._checked = RawArray(c_uint8, self.num_shards)  # per shard; shared with the DataLoader workers
        self._paths = [file_path(shard) for shard in self.shards]
        self._open = OpenShards()
        self._ahead: FetchAhead | None = None  # of the current iteration

    def __iter__(self) -> Iterator[PackedRow]:  # type: ignore[override]
        self.leave_iteration()
        self._unique_worker_world = self._unique_rank_world.detect_workers()
        self._parallel_worker_world = self._parallel_rank_world.detect_workers()
        epoch, sample_in_epoch = self._resume_incr_epoch()
        ids = self._get_work(epoch, sample_in_epoch)
        ids = ids[ids != PADDING]
        shard_ids, numbers = self._locate(ids)
        assert self.predownload is not None  # Streaming's constructor sets a default
        self._ahead = ahead = FetchAhead(partial(self.prepare_shard, blocking=False), shard_ids, self.predownload)
        for begin in range(0, len(ids), ROWS_AT_ONCE):
            part = slice(begin, begin + ROWS_AT_ONCE)
            for row_id, row in zip(ids[part].tolist(), self._rows(shard_ids[part], numbers[part]), strict=True):
                if self._ahead is not ahead:
                    raise RuntimeError("a second iteration over the same data set was started, which ended this one")
                yield PackedRow(row_id, row)
            if ahead.failure is not None:
                raise ahead.failure
            ahead.has_read(begin + ROWS_AT_ONCE)
        ahead.end()

    def leave_iteration(self) -> None:
        """Stops the background thread of an iteration that was abandoned early."""
        if self._ahead is not None:
            self._ahead.leave()

    def __getitem__(self, at: int) -> PackedRow:  # type: ignore[override]
        return PackedRow(int(at), self.get_item(int(at)))

    def get_item(self, sample_id: int) -> bytes:  # type: ignore[override]
        return self._rows(*self._locate(np.array([sample_id])))[0]

    def _locate(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shard of each row, and the row's number within it."""
        bounds = self.spanner.shard_bounds
        shard_ids = np.searchsorted(bounds, ids, side="right") - 1
        return shard_ids, ids - bounds[shard_ids]

    def _rows(self, shard_ids: NDArray[np.int64], numbers: NDArray[np.int64]) -> list[bytes]:
        rows = [b""] * len(numbers)
        for shard_id in dict.fromkeys(shard_ids.tolist()):
            indices = np.flatnonzero(shard_ids == shard_id)
            for index, row in zip(indices.tolist(), self._rows_of(shard_id, numbers[indices]), strict=True):
                rows[index] = row
        return rows

    def _rows_of(self, shard_id: int, numbers: NDArray[np.int64]) -> list[bytes]:
        """Rows of one shard, which is first downloaded, verified and fixed if necessary."""
        path = self._paths[shard_id]
        for _ in range(ATTEMPTS):
            if not self._checked[shard_id]:
                self.prepare_shard(shard_id)
                if not self._checked[shard_id]:  # it was evicted again by another process
                    continue
            if self.cache_limit and not path.exists():
                self._open.forget(path)
                self._checked[shard_id] = False
                continue
            try:
                rows = self._open.rows(path, numbers)
            except FileNotFoundError:
                self._checked[shard_id] = False
                continue
            if self.cache_limit:
                self._shard_access_times[shard_id] = time_ns()
            return rows
        raise UserError(
            f"{path.name}: was evicted from the cache {ATTEMPTS} times before it could be read; "
            "data.train.cache_limit is too small for the runs that share the folder"
        )

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Runs Streaming's `prepare_shard`, then verifies the shard. Returns at once for a shard that is already
        verified, because Streaming would take a file lock in every call."""
        if self._checked[shard_id] and self._shard_states[shard_id] == _ShardState.LOCAL:
            return
        try:
            super().prepare_shard(shard_id, blocking)
            if self._shard_states[shard_id] == _ShardState.LOCAL:
                self._checked[shard_id] = self._is_valid(shard_id)
        except BaseException:
            # A thread that waits for the shard then tries to prepare it and raises too, instead of waiting for ever.
            self._shard_states[shard_id] = _ShardState.REMOTE
            raise

    def _is_valid(self, shard_id: int) -> bool:
        """Whether a local shard is valid, after fixing it if possible. False if it was evicted and must be downloaded
        again; UserError if it cannot be fixed."""
        stream, shard = self.streams[self.stream_per_shard[shard_id]], self.shards[shard_id]
        assert isinstance(stream, CheckedStream)
        if not self.cache_limit:
            stream.prepare_shard(shard)
            return True
        name = file_name(shard)
        if stream.files.corruption(name) is None:
            return True
        # The shard was evicted by another process, or is corrupted. Evict it through Streaming so that the cache's byte
        # count stays right; the reader retries and downloads it again.
        with FileLock(self._cache_filelock_path):
            if self._shard_states[shard_id] == _ShardState.LOCAL and stream.files.corruption(name) is not None:
                self._evict_shard(shard_id)
        return False

    def _evict_shard(self, shard_id: int) -> None:
        self._checked[shard_id] = False
        self._open.forget(self._paths[shard_id])
        super()._evict_shard(shard_id)

    def _get_work(self, epoch: int, sample_in_epoch: int) -> NDArray[np.int64]:
        """Returns no rows if the run resumes at the end of an epoch: Streaming would repeat the rows that only pad the
        canonical nodes."""
        if sample_in_epoch >= self.epoch_size:
            return np.empty(0, np.int64)
        return super()._get_work(epoch, sample_in_epoch)


def training_streams(streams: Sequence[StreamConfig]) -> list[Stream]:
    """Streaming's stream objects. The folder of a stream without a remote must be complete."""
    return [CheckedStream(str(s.local), s.remote, s.proportion) for s in streams]


DATASET = "streaming.base.dataset:"
PATCHES = [
    Patch(
        DATASET + "get_shm_prefix",
        "replaced while a data set is created: `shared_number` chooses the number in the names of its shared memory",
        "two runs that start together on a machine take the same number; a killed run's memory is never removed",
        "random names with a lease in Streaming itself",
        ("df1d1d0a0cbb",),
    ),
    Patch(
        DATASET + "StreamingDataset.__init__",
        "its attributes _shard_states, _shard_access_times, _cache_filelock_path, _unique_rank_world and "
        "_parallel_rank_world are read and set",
        "the cache's bookkeeping would be wrong, because rows are read here and not by Streaming",
        "an iteration in Streaming that raises the errors of its threads",
        ("34032a553e3c",),
    ),
    Patch(
        DATASET + "StreamingDataset.__iter__",
        "replaced: many rows are read at once, and every error is raised",
        "if a background thread fails, the epoch ends as if all rows had been read",
        "an iteration in Streaming that raises the errors of its threads",
        ("6457c4cfbae0",),
    ),
    Patch(
        DATASET + "StreamingDataset._resume_incr_epoch",
        "called by the iteration",
        "Streaming determines the epoch and the position in it",
        "as for __iter__",
        ("401d17537fb8",),
    ),
    Patch(
        DATASET + "StreamingDataset._get_work",
        "extended: no rows if a run resumes at the end of an epoch",
        "the rows that only pad the canonical nodes would be trained on twice",
        "a fix in Streaming",
        ("b44aef7d7bfd",),
    ),
    Patch(
        DATASET + "StreamingDataset.prepare_shard",
        "extended: the shard is verified; no file lock is taken for a verified one; a failure releases the "
        "waiting threads",
        "Streaming checks hashes only when it downloads, and takes a file lock for every row",
        "validation of local shards in Streaming",
        ("0aebbfc3c71c",),
    ),
    Patch(
        DATASET + "StreamingDataset._evict_shard",
        "extended and called: an evicted shard is closed and has to be verified again",
        "rows would be read from a deleted file; a corrupted shard would stay in the cache",
        "validation of local shards in Streaming",
        ("82a72e29eb97",),
    ),
    Patch(
        DATASET + "_ShardState",
        "read",
        "says whether a shard is local",
        "as for prepare_shard",
        ("9560e375bf6c",),
    ),
    Patch(
        "streaming.base.stream:Stream.prepare_shard",
        "replaced: `ShardFiles` downloads, unpacks and verifies",
        "several processes of a machine would download the same shard at the same time and read a part of it",
        "atomic downloads in Streaming",
        ("702a0c19a63e",),
    ),
    Patch(
        "streaming.base.constant:SHM_TO_CLEAN",
        "read: the names of the shared memory, which is removed when the last process of a run has ended",
        "a killed run's shared memory is never removed",
        "as for get_shm_prefix",
    ),
]
