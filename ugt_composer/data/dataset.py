"""MDS folders as data sets: a streamed one for training, an indexed one for evaluation."""

from collections.abc import Iterator, Sequence

import numpy as np
from streaming import LocalDataset, Stream, StreamingDataset
from torch.utils.data import IterableDataset, get_worker_info

from ugt_composer.config import StreamConfig
from ugt_composer.data.collate import PackedRow


class RowDataset(StreamingDataset):
    """Streams packed rows in a deterministic, resumable order. Keyword arguments are StreamingDataset's."""

    def __getitem__(self, at: int) -> PackedRow:  # type: ignore[override]
        return PackedRow(int(at), super().__getitem__(at)["row"])


class RecommendDataset(RowDataset):
    """Histories with the items that followed."""


class PreferenceDataset(RowDataset):
    """Histories with a chosen item and rejected ones, possibly mixed with recommend rows, which carry no pair."""


class EvaluationDataset(IterableDataset):
    """This rank's rows of one or more MDS folders: rows rank, rank + world_size, …

    Every rank gets ⌈rows / world_size⌉ rows, so that no rank waits for another; those past the end are the first
    rows again with `counts` False, so that each row is counted once whatever the number of ranks.
    """

    def __init__(self, streams: Sequence[StreamConfig], rank: int, world_size: int):
        self.folders = [_indexed(stream) for stream in streams]
        self.ends = np.cumsum([folder.size for folder in self.folders])
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return -(-int(self.ends[-1]) // self.world_size)

    def __iter__(self) -> Iterator[PackedRow]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        total = int(self.ends[-1])
        for at in range(first, len(self), step):
            row_id = at * self.world_size + self.rank
            yield PackedRow(row_id % total, self._row(row_id % total), counts=row_id < total)

    def _row(self, row_id: int) -> bytes:
        number = int(np.searchsorted(self.ends, row_id, side="right"))
        folder = self.folders[number]
        return folder[row_id - int(self.ends[number]) + folder.size]["row"]


def _indexed(stream: StreamConfig) -> LocalDataset | StreamingDataset:
    """Shards on this machine are read in place; remote ones are fetched into `local` as they are needed."""
    if stream.remote is None:
        assert stream.local is not None
        return LocalDataset(stream.local)
    return StreamingDataset(remote=stream.remote, local=stream.local, batch_size=1)


def training_streams(streams: Sequence[StreamConfig]) -> list[Stream]:
    """Streaming's own objects. A stream without a remote must lie complete in its folder."""
    return [Stream(local=s.local, remote=s.remote, proportion=s.proportion) for s in streams]
