"""The evaluation's data set: this rank's rows of MDS folders, by index.

Every shard is verified before its first row is returned.
"""

from collections.abc import Iterable, Iterator, Sequence
from ctypes import c_uint8
from multiprocessing.sharedctypes import RawArray

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from ugt_composer.config.schema import StreamConfig
from ugt_composer.data.collate import PackedRow
from ugt_composer.data.shard_files import ShardFiles
from ugt_composer.data.shard_rows import OpenShards


class EvaluationDataset(IterableDataset):
    """This rank's rows of one or more MDS folders: rows rank, rank + world_size, …

    Every rank gets ⌈rows / world_size⌉ rows, so that no rank waits for another; past the end the first rows are
    repeated with `counts` False, so that each row is counted once for any number of ranks.
    """

    def __init__(self, streams: Sequence[StreamConfig], rank: int, world_size: int):
        self.folders = [RowFolder(str(stream.local), stream.remote) for stream in streams]
        self.ends = np.cumsum([len(folder) for folder in self.folders])
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return -(-self.rows // self.world_size)

    def __iter__(self) -> Iterator[PackedRow]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        total = self.rows
        for at in range(first, len(self), step):
            row_id = at * self.world_size + self.rank
            yield PackedRow(row_id % total, self.packed_row(row_id % total), counts=row_id < total)

    @property
    def rows(self) -> int:
        """Of all ranks together."""
        return int(self.ends[-1])

    def packed_row(self, row_id: int) -> bytes:
        number = int(np.searchsorted(self.ends, row_id, side="right"))
        folder = self.folders[number]
        return folder[row_id - int(self.ends[number]) + len(folder)]


class BatchesOfRank(EvaluationDataset):
    """This rank's batches of those that a single process would make: batches rank, rank + world_size, … of each
    DataLoader worker. The numbers that a batch adds to the metrics then do not depend on the number of ranks, but ranks
    may have one batch more or less.

    Args:
        batch_size, num_workers: of the DataLoader.
        row_ids: the rows to read; None: all.
    """

    def __init__(
        self,
        streams: Sequence[StreamConfig],
        rank: int,
        world_size: int,
        batch_size: int,
        num_workers: int,
        row_ids: Sequence[int] | None = None,
    ):
        super().__init__(streams, rank, world_size)
        self.batch_size, self.workers = batch_size, max(1, num_workers)
        self.row_ids: Sequence[int] = range(self.rows) if row_ids is None else row_ids

    def __len__(self) -> int:
        return sum(len(batch) for worker in range(self.workers) for batch in self._batches(worker, self.rank))

    @property
    def most_batches(self) -> int:
        """Of any rank: of rank 0, which no other has more than."""
        return sum(len(list(self._batches(worker, 0))) for worker in range(self.workers))

    def __iter__(self) -> Iterator[PackedRow]:
        worker = get_worker_info()
        for batch in self._batches(0 if worker is None else worker.id, self.rank):
            for at in batch:
                yield PackedRow(self.row_ids[at], self.packed_row(self.row_ids[at]))

    def _batches(self, worker: int, rank: int) -> Iterable[range]:
        """The places in `row_ids` of each batch of a worker."""
        of_worker = range(worker, len(self.row_ids), self.workers)
        for begin in range(rank * self.batch_size, len(of_worker), self.world_size * self.batch_size):
            yield of_worker[begin : begin + self.batch_size]


class RowFolder:
    """The packed rows of one folder by index. A shard is verified, or downloaded, when its first row is read."""

    def __init__(self, local: str, remote: str | None):
        self.files = ShardFiles(local, remote)
        self._names = list(self.files.shards)
        self._ends = np.cumsum([shard.rows for shard in self.files.shards.values()], dtype=np.int64)
        self._checked = RawArray(c_uint8, len(self._names))  # per shard; shared with the DataLoader workers
        self._open = OpenShards()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, at: int) -> bytes:
        if not 0 <= at < len(self):
            raise IndexError(f"row {at} of {len(self)}")
        shard_id = int(np.searchsorted(self._ends, at, side="right"))
        number = at - int(self._ends[shard_id]) + self.files.shards[self._names[shard_id]].rows
        path = self.files.folder / self._names[shard_id]
        if not self._checked[shard_id]:
            self.files.ensure(path.name)
            self._checked[shard_id] = True
        try:
            return self._open.rows(path, np.array([number]))[0]
        except FileNotFoundError:  # removed since it was verified
            self.files.ensure(path.name)
            return self._open.rows(path, np.array([number]))[0]
