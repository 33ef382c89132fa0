"""MDS folders as data sets: a streamed one for training, an indexed one for evaluation."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from streaming import LocalDataset, Stream, StreamingDataset
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, get_worker_info

from ugt_composer.config import StreamConfig
from ugt_composer.data.collate import PackedRow
from ugt_composer.data.manifest import PREFERENCE, RECOMMEND, Manifest
from ugt_composer.errors import UserError


class RowDataset(StreamingDataset):
    """Streams packed rows in a deterministic, resumable order. Keyword arguments are StreamingDataset's."""

    kinds: tuple[str, ...] = (RECOMMEND, PREFERENCE)

    def __init__(self, manifests: Sequence[Manifest], **kwargs):
        for manifest in manifests:
            if manifest.kind not in self.kinds:
                raise UserError(f"{manifest.folder}: holds {manifest.kind} rows; expected {' or '.join(self.kinds)}")
        super().__init__(**kwargs)

    def __getitem__(self, at: int) -> PackedRow:  # type: ignore[override]
        return PackedRow(int(at), super().__getitem__(at)["row"])


class RecommendDataset(RowDataset):
    """Histories with the items that followed."""

    kinds = (RECOMMEND,)


class PreferenceDataset(RowDataset):
    """Histories with a chosen item and rejected ones, possibly mixed with recommend rows, which carry no pair."""

    kinds = (RECOMMEND, PREFERENCE)


class EvaluationDataset(IterableDataset):
    """This rank's rows of one or more MDS folders: rows rank, rank + world_size, …

    Every rank gets ⌈rows / world_size⌉ rows, so that no rank waits for another; those past the end are the first
    rows again with `counts` False, so that each row is counted once whatever the number of ranks.
    """

    def __init__(self, streams: Sequence[StreamConfig], rank: int, world_size: int):
        self.rows: ConcatDataset = ConcatDataset([_indexed(stream) for stream in streams])
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.world_size)

    def __iter__(self) -> Iterator[PackedRow]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        total = len(self.rows)
        for at in range(first, len(self), step):
            row_id = at * self.world_size + self.rank
            yield PackedRow(row_id % total, self.rows[row_id % total]["row"], counts=row_id < total)


def _indexed(stream: StreamConfig) -> Dataset:
    """Shards on this machine are read in place; remote ones are fetched into `local` as they are needed."""
    if stream.remote is None:
        assert stream.local is not None
        return LocalDataset(stream.local)
    return StreamingDataset(remote=stream.remote, local=stream.local)  # type: ignore[return-value]


def training_streams(streams: Sequence[StreamConfig]) -> list[Stream]:
    """Streaming's own objects. A stream without a remote must lie complete in its folder."""
    return [
        Stream(
            local=str(Path(stream.local)) if stream.local else None, remote=stream.remote, proportion=stream.proportion
        )
        for stream in streams
    ]
