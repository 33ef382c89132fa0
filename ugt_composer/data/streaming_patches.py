"""Streaming's data set as this project uses it: the order of the rows is Streaming's, reading and verifying are ours.

`PATCHES` names every private function of Streaming that is overridden, replaced or called; see
`ugt_composer/patches.py` and `docs/architecture.md`.
"""

import logging
import pickle
from collections import deque
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
from streaming.base.format.base.reader import FileInfo
from streaming.base.world import World

from ugt_composer.config.schema import StreamConfig
from ugt_composer.data.collate import PackedRow
from ugt_composer.data.fetch_ahead import FetchAhead
from ugt_composer.data.integrity import FileFacts, ShardFacts
from ugt_composer.data.order.draws import can_skip
from ugt_composer.data.order.epoch import EpochOrder
from ugt_composer.data.order.partition import Partition, Shape, partition
from ugt_composer.data.order.saved_marks import pack_marks, unpack_marks
from ugt_composer.data.order.shuffle import can_order, find_starts, make_marks, shuffled_spans
from ugt_composer.data.order.units import Units, sampled_units
from ugt_composer.data.shard_files import ShardFiles
from ugt_composer.data.shard_rows import OpenShards
from ugt_composer.data.shared_memory import shared_number
from ugt_composer.errors import UserError
from ugt_composer.patches import Patch

log = logging.getLogger(__name__)

PADDING = -1  # Streaming's row number for an empty slot of the last batches
ROWS_AT_ONCE = 128
MOST_MARKS = 1 << 16  # bytes
ATTEMPTS = 8  # to read a shard that another process keeps evicting from the cache


def file_name(shard: Reader) -> str:
    """Name of the file that the rows of a shard are read from."""
    return shard.file_pairs[0][0].basename


def file_path(shard: Reader) -> Path:
    return Path(shard.dirname, shard.split, file_name(shard))


class ShardBounds:
    """Replaces Streaming's `Spanner`, which finds the shard of a row in a table of all rows.

    Attributes:
        shard_bounds: (shards + 1,) the first row of each shard, and the number of rows.
    """

    def __init__(self, shard_sizes: NDArray[np.int64]):
        self.shard_bounds = np.concatenate([np.zeros(1, np.int64), shard_sizes.cumsum()])


@contextmanager
def own_parts() -> Iterator[None]:
    """Within this context, a new StreamingDataset gets a segment number that no other run uses or has used, and finds
    shards by `ShardBounds`."""
    module = streaming.base.dataset
    before = module.get_shm_prefix, module.Spanner
    module.get_shm_prefix, module.Spanner = shared_number, ShardBounds  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        module.get_shm_prefix, module.Spanner = before  # type: ignore[misc]


class CheckedStream(Stream):
    """A stream whose shards are downloaded, unpacked and verified by `ShardFiles`."""

    def __init__(self, local: str, remote: str | None, proportion: float | None):
        super().__init__(local=local, remote=remote, proportion=proportion)
        self.files = ShardFiles(local, remote)

    def prepare_shard(self, shard: Reader) -> int:
        return self.files.ensure(file_name(shard))

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[Reader]:
        return [ShardReader(str(self.local), shard) for shard in self.files.shards.values()]


class ShardReader(Reader):
    """A shard as Streaming sees it: files and their sizes. Streaming's own class takes four times as much memory."""

    def __init__(self, folder: str, facts: ShardFacts):
        self.dirname, self._facts = folder, facts

    split = ""
    compression = property(lambda self: self._facts.compression)
    samples = property(lambda self: self._facts.rows)
    file_pairs = property(lambda self: [(_info(self._facts.raw), self._facts.zipped and _info(self._facts.zipped))])

    def get_sample_data(self, idx: int) -> bytes:
        raise NotImplementedError("rows are read by `OpenShards`")

    def decode_sample(self, data: bytes) -> dict[str, Any]:
        raise NotImplementedError("rows are read by `OpenShards`")


def _info(facts: FileFacts) -> FileInfo:
    return FileInfo(facts.name, facts.size, facts.hashes)


class RowDataset(StreamingDataset):
    """Streams packed rows in a deterministic, resumable order. Keyword arguments are StreamingDataset's.

    Streaming determines the order and the position to resume at, but not how rows are read. Streaming handles each row
    three times, in two background threads and when it is read; if one of these fails, the epoch ends as if all rows had
    been read; and it checks hashes only when it downloads. Here many rows are read at once, each shard is verified
    before its first row is read, once per rank including its workers, and every error is raised by the iteration.

    Streaming computes the order of a whole epoch before its first row. Here each worker produces the same order while
    it reads (see `ugt_composer.data.order`), except for what only Streaming's own code can do: other shuffles than
    py1e, batching by stream, and epochs of fewer rows than canonical nodes.
    """

    def __init__(self, **arguments: Any):
        with own_parts():
            super().__init__(**arguments)
        self._checked = RawArray(c_uint8, self.num_shards)  # per shard; shared with the DataLoader workers
        self._marks = RawArray(c_uint8, MOST_MARKS)  # of the last epoch, packed; shared with them too
        self._paths: dict[int, Path] = {}
        self._open = OpenShards()
        self._ahead: FetchAhead | None = None  # of the current iteration

    def __iter__(self) -> Iterator[PackedRow]:  # type: ignore[override]
        self.leave_iteration()
        assert self.predownload is not None  # Streaming's constructor sets a default
        self._ahead = ahead = FetchAhead(partial(self.prepare_shard, blocking=False), self.predownload)
        read = 0
        for ids, shard_ids, numbers in self._parts(ahead):
            for row_id, row in zip(ids.tolist(), self._rows(shard_ids, numbers), strict=True):
                if self._ahead is not ahead:
                    raise RuntimeError("a second iteration over the same data set was started, which ended this one")
                yield PackedRow(row_id, row)
            if ahead.failure is not None:
                raise ahead.failure
            read += len(ids)
            ahead.has_read(read)
        ahead.end()

    def _parts(self, ahead: FetchAhead) -> Iterator[tuple[NDArray[np.int64], ...]]:
        """This worker's rows, ROWS_AT_ONCE at a time: their ids, shards, and numbers within the shards.

        With each part, more of the order is produced until the rows that are fetched ahead are known.
        """
        assert self.predownload is not None
        blocks, waiting = self.order(), deque[tuple[NDArray[np.int64], ...]]()
        known = 0
        while True:
            if known <= self.predownload + ROWS_AT_ONCE and (ids := next(blocks, None)) is not None:
                shard_ids, numbers = self._locate(ids)
                ahead.add(shard_ids)
                known += len(ids)
                for begin in range(0, len(ids), ROWS_AT_ONCE):
                    part = slice(begin, begin + ROWS_AT_ONCE)
                    waiting.append((ids[part], shard_ids[part], numbers[part]))
            if not waiting:
                return
            yield waiting[0]
            known -= len(waiting.popleft()[0])

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

    def _path(self, shard_id: int) -> Path:
        path = self._paths.get(shard_id)
        if path is None:
            path = self._paths[shard_id] = file_path(self.shards[shard_id])
        return path

    def _rows_of(self, shard_id: int, numbers: NDArray[np.int64]) -> list[bytes]:
        """Rows of one shard, which is first downloaded, verified and fixed if necessary."""
        path = self._path(shard_id)
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
        self._open.forget(self._path(shard_id))
        super()._evict_shard(shard_id)

    def order(self) -> Iterator[NDArray[np.int64]]:
        """Starts the next epoch, or resumes one: the ids of this worker's rows, in their order and in blocks.

        There are none if the run resumes at the end of an epoch: Streaming would repeat the rows that only pad the
        canonical nodes.
        """
        self._unique_worker_world = self._unique_rank_world.detect_workers()
        self._parallel_worker_world = self._parallel_rank_world.detect_workers()
        epoch, sample_in_epoch = self._resume_incr_epoch()
        if sample_in_epoch >= self.epoch_size:
            return
        partition = self._partition(sample_in_epoch)
        order = None if partition is None else self._shared_order(epoch, partition)
        if order is None:
            ids = self._get_work(epoch, sample_in_epoch)
            yield ids[ids != PADDING]
            return
        world = self._parallel_worker_world
        yield from order.rows(world.node, world.rank_of_node, world.worker_of_rank)

    def _partition(self, sample_in_epoch: int) -> Partition | None:
        """Who reads which rows; None if only Streaming's own code can say, or cannot shuffle them otherwise."""
        world, canonical = self._parallel_worker_world, self.num_canonical_nodes
        is_simple = self.batching_method == "random" and self.sampling_granularity == 1 and not self.replication
        can_shuffle = not self.shuffle or (self.shuffle_algo == "py1e" and can_skip())
        if not (is_simple and can_shuffle and isinstance(self.batch_size, int) and canonical):
            return None
        shape = Shape(world.num_nodes, world.ranks_per_node, world.workers_per_rank, self.batch_size)
        is_relaxed = self.partition_algo == "relaxed"
        return partition(self.epoch_size, canonical, shape, sample_in_epoch, self.initial_physical_nodes, is_relaxed)

    def _shared_order(self, epoch: int, partition: Partition) -> EpochOrder | None:
        """The order, which one process of this machine prepares for all; None as for `_partition`."""
        world = self._unique_worker_world
        if world.is_local_leader:
            order, marks = self._order(epoch, partition)
            data = pickle.dumps((order, marks))
            words = np.frombuffer(data + bytes(-len(data) % 8), np.int64)
            shape_memory, memory = self._share_work(words.reshape(1, 1, 1, 1, -1))
            self._shared_barrier(world.workers_per_node)
        else:
            self._shared_barrier(world.workers_per_node)
            words, shape_memory, memory = self._attach_work()
            order, marks = pickle.loads(words.tobytes())
            del words
        self._shared_barrier(world.workers_per_node)
        shape_memory.cleanup()
        if memory is not None:
            memory.cleanup()
        if not world.worker_of_rank:
            self._keep_marks(marks)
        return order

    def _order(self, epoch: int, partition: Partition) -> tuple[EpochOrder | None, str]:
        """The order of an epoch, and its packed marks."""
        units = self._units(epoch)
        if not self.shuffle:
            return EpochOrder(partition, units), ""
        block_size = self.shuffle_block_size
        assert block_size is not None  # set when the position was determined
        if not can_order(units.sizes, block_size):
            return None, ""
        spans = shuffled_spans(units.sizes, partition.canonical, self.shuffle_seed, epoch)
        if (largest := max(int(sizes.max()) for sizes in spans.sizes)) > block_size:
            log.warning(
                "data.train.shuffle_block_size is %d, but a shard has %d rows: the rows of such shards are not mixed "
                "with those of others; expected a larger block",
                block_size,
                largest,
            )
        key = [self.shuffle_seed, epoch, partition.canonical, block_size, spans.fingerprint()]
        marks = unpack_marks(self._kept_marks(), key, spans.mark_counts(), spans.state) or make_marks(spans, block_size)
        nodes = partition.nodes_of(self._parallel_worker_world.node)
        starts = find_starts(spans, marks, block_size, nodes, partition.first_index())
        return EpochOrder(partition, units, spans, starts, block_size), pack_marks(key, marks)

    def _units(self, epoch: int) -> Units:
        begins, counts = self.shard_offset_per_stream.tolist(), self.shards_per_stream.tolist()
        streams = [slice(begin, begin + count) for begin, count in zip(begins, counts, strict=True)]
        choose = [int(stream.choose) for stream in self.streams]
        seed = self.shuffle_seed + (epoch if self.epoch_seed_change else 0)
        draw_seed = self.shuffle_seed + (epoch if self.sampling_method == "balanced" else 0)
        return sampled_units(self.samples_per_shard, streams, choose, seed, draw_seed)

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """Streaming's position, and the marks of the epoch's order, from which a resumed run finds its place in it."""
        state, marks = super().state_dict(num_samples, from_beginning), self._kept_marks()
        return {**state, "order_marks": marks} if marks else state

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        self._keep_marks(obj.get("order_marks", ""))
        super().load_state_dict({key: value for key, value in obj.items() if key != "order_marks"})

    def _keep_marks(self, marks: str) -> None:
        """For other processes of this rank. Without them, the next iteration only takes longer to start."""
        data = marks.encode()
        if 0 < len(data) < MOST_MARKS:
            memoryview(self._marks).cast("B")[: len(data) + 1] = data + b"\0"

    def _kept_marks(self) -> str:
        return bytes(self._marks).partition(b"\0")[0].decode()


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
        "called for other shuffles than py1e, batching by stream, and fewer rows than canonical nodes",
        "Streaming computes the order of a whole epoch, 48 bytes a row, before its first row",
        "as for get_shuffle_py1e",
        ("b44aef7d7bfd",),
    ),
    Patch(
        DATASET + "StreamingDataset._share_work",
        "called: shares what one process of a machine has prepared for the order",
        "each process would skip the draws of all rows at a start",
        "as for get_shuffle_py1e",
        ("d1e82efab458",),
    ),
    Patch(
        DATASET + "StreamingDataset._attach_work",
        "called by the other processes",
        "as for _share_work",
        "as for get_shuffle_py1e",
        ("466aee289937",),
    ),
    Patch(
        DATASET + "StreamingDataset.state_dict",
        "extended: with the marks of the epoch's order",
        "a resumed run would skip the draws of all rows again",
        "as for get_shuffle_py1e",
        ("f43fd0324bba",),
    ),
    Patch(
        DATASET + "StreamingDataset.load_state_dict",
        "extended: takes the marks out",
        "Streaming's position must fit a page of memory",
        "as for get_shuffle_py1e",
        ("05a5e2b2930e",),
    ),
    Patch(
        "streaming.base.shuffle.py1e:get_shuffle_py1e",
        "replaced: `data/order/shuffle.py` produces the same order in windows",
        "10⁹ rows would take 48 GB and minutes before the first batch",
        "an order in constant memory in Streaming",
        ("6ce6d1755fa8",),
    ),
    Patch(
        "streaming.base.shuffle.py1s:divide_spans",
        "called",
        "the shards of each canonical node are those of Streaming",
        "as for get_shuffle_py1e",
        ("0f9217e90a7b",),
    ),
    Patch(
        "streaming.base.batching.random:generate_work_random_batching",
        "replaced: `data/order/epoch.py` produces the same rows while they are read",
        "as for get_shuffle_py1e",
        "as for get_shuffle_py1e",
        ("93645f14cdcc",),
    ),
    Patch(
        "streaming.base.partition.orig:get_partitions_orig",
        "replaced: `data/order/partition.py` computes which rows a batch has",
        "as for get_shuffle_py1e",
        "as for get_shuffle_py1e",
        ("ca777c79d822",),
    ),
    Patch(
        "streaming.base.partition.relaxed:get_partitions_relaxed",
        "replaced by `data/order/partition.py` too",
        "as for get_shuffle_py1e",
        "as for get_shuffle_py1e",
        ("6f916ab02376",),
    ),
    Patch(
        DATASET + "StreamingDataset.resample_streams",
        "replaced: `data/order/units.py` repeats and samples streams without a list of all rows",
        "as for get_shuffle_py1e",
        "as for get_shuffle_py1e",
        ("0f2bf8c08cdb",),
    ),
    Patch(
        "streaming.base.sampling:get_sampling",
        "replaced by `data/order/units.py` too",
        "as for get_shuffle_py1e",
        "as for get_shuffle_py1e",
        ("31c9d4fee743",),
    ),
    Patch(
        "streaming.base.spanner:Spanner",
        "replaced while a data set is created: `ShardBounds` finds the shard of a row by bisection",
        "its table takes 8 bytes a row while it is built",
        "a smaller table in Streaming",
        ("2a90e65c995a",),
    ),
    Patch(
        "streaming.base.stream:Stream.get_shards",
        "replaced: the shards of the index that `ShardFiles` has read",
        "the index is parsed twice, and its 10⁵ shards take 10 s and 300 MB",
        "faster parsing in Streaming",
        ("6d6f4b3a6363",),
    ),
    Patch(
        "streaming.base.format.base.reader:Reader",
        "inherited by `ShardReader`: its methods list, measure and delete the files of a shard",
        "as for get_shards",
        "as for get_shards",
        ("976391d92cf1",),
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
