"""Config to the data loaders of training and evaluation."""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from composer import DataSpec
from composer.utils import dist
from streaming import StreamingDataLoader

from ugt_composer.config.checks import device_batch_size
from ugt_composer.config.schema import Config, StreamConfig
from ugt_composer.data.collate import collate
from ugt_composer.data.evaluation_dataset import BatchesOfRank, EvaluationDataset
from ugt_composer.data.integrity import read_index
from ugt_composer.data.manifest import Manifest, check_data, check_kinds, streams_of
from ugt_composer.data.remote_folder import fetch_descriptions
from ugt_composer.data.shard_files import is_only_copy
from ugt_composer.data.streaming_patches import RowDataset, training_streams
from ugt_composer.errors import EXIT_ERROR, RunError, UserError
from ugt_composer.job.signals import leave_signals_to_parent
from ugt_composer.jsonl.schema import PREFERENCE
from ugt_composer.storage.hashed_file import preferred
from ugt_composer.torch_patches import WatchedWorkers
from ugt_composer.training.microbatch import rows_in_batch, split_batch
from ugt_composer.training.worker_memory import FOLDER, about, remedy

log = logging.getLogger(__name__)

# In PyTorch's errors of a worker that could not write into shared memory, or that was killed.
OUT_OF_SHARED_MEMORY = ("Bus error", "exited unexpectedly", "No space left on device", "shared memory")

T = TypeVar("T")


class RowLoader(StreamingDataLoader):
    """A DataLoader that raises its workers' errors as one sentence about the data, without the worker's traceback.

    Args:
        key: "data.train" or "data.eval", for messages.
        min_rejected, longest_first, with_lengths: see `collate`.
        timeout: seconds to wait for a batch from a worker that is alive but stuck. A worker that has died is noticed
            within seconds.
        start_timeout: the same for the first batch; None: as for the others.
    """

    def __init__(
        self,
        dataset: Any,
        key: str,
        num_workers: int,
        timeout: float,
        start_timeout: float | None = None,
        min_rejected: int = 0,
        longest_first: bool = False,
        with_lengths: bool = False,
        **arguments: Any,
    ):
        self.key = key
        self.start_timeout = max(timeout, start_timeout or 0.0)
        super().__init__(
            dataset,
            collate_fn=partial(
                collate, min_rejected=min_rejected, longest_first=longest_first, with_lengths=with_lengths
            ),
            num_workers=num_workers,
            timeout=timeout if num_workers else 0,
            worker_init_fn=begin_worker,
            generator=torch.Generator(),  # its own, so that starting an iteration leaves the model's random state alone
            **arguments,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # The traceback is dropped: the DataLoader's re-raise makes a reference cycle of it, which keeps workers alive.
        try:
            yield from super().__iter__()
        except UserError as error:
            raise UserError(_sentence(str(error.with_traceback(None)))) from None
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            cause = str(error.with_traceback(None)).splitlines()[0].rstrip(". ")
            if FOLDER.is_dir() and any(sign in str(error) for sign in OUT_OF_SHARED_MEMORY):
                raise RunError(
                    f"{self.key}: {cause}; a worker ends like this if the shared memory for its batches is full: "
                    f"{about()} now. If that is little, {remedy()}, or lower {self.key}.num_workers; else see the "
                    "worker's own error above"
                ) from None
            raise RunError(
                f"{self.key}: {cause}; a worker is killed when the memory of the machine or the container is full "
                f"(then lower {self.key}.num_workers), and times out when the data's disk or store does not answer"
            ) from None

    def _get_iterator(self) -> Any:
        return WatchedWorkers(self, self.start_timeout) if self.num_workers else super()._get_iterator()


def begin_worker(worker: int) -> None:
    """Runs first in each worker."""
    leave_signals_to_parent()  # again, because PyTorch has installed its own SIGTERM handler
    end_with_parent()


def end_with_parent() -> None:
    """Ends a worker soon after its rank was killed. By itself a worker checks for its parent only between two batches,
    and within one it may wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        while os.getppid() == parent.pid:
            time.sleep(1.0)
        os._exit(EXIT_ERROR)

    threading.Thread(target=watch, daemon=True).start()


def _sentence(message: str) -> str:
    """The message of a worker's UserError, taken from the end of the traceback that the DataLoader raises."""
    return message.rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2].strip()


def build_train_loader(config: Config) -> tuple[DataSpec, list[Manifest]]:
    """The loader of `data.train`, global_train_batch_size / world_size rows per rank and batch, and its manifests.

    Raises:
        UserError: the data is missing, does not fit the model, or the batch does not divide over the ranks.
    """
    data, batch_size = config.data.train, device_batch_size(config, dist.get_world_size())
    streams = streams_of("data.train", data)
    manifests = check_folders(config, "data.train", streams)
    check_kinds(config, manifests)
    for manifest in manifests:
        if manifest.rows < data.num_canonical_nodes:
            raise UserError(
                f"{manifest.folder} has {manifest.rows} rows, fewer than data.train.num_canonical_nodes "
                f"({data.num_canonical_nodes}); set that to 1"
            )
    if data.cache_limit is not None:
        for stream in streams:
            if is_only_copy(str(stream.local), stream.remote):
                raise UserError(
                    f"data.train.cache_limit is {data.cache_limit}, but {stream.local} has no remote: evicting a "
                    "shard would delete the only copy; expected cache_limit null"
                )
    dataset = RowDataset(
        streams=training_streams(streams),
        batch_size=batch_size,
        shuffle=data.shuffle,
        shuffle_seed=config.seed,
        shuffle_block_size=data.shuffle_block_size,
        num_canonical_nodes=data.num_canonical_nodes,
        predownload=data.predownload,
        cache_limit=data.cache_limit,
    )
    loader = RowLoader(
        dataset,
        key="data.train",
        min_rejected=int(config.loss.lambda_preference > 0),
        longest_first=data.group_by_length and has_microbatches(config, batch_size),
        with_lengths=True,
        num_workers=data.num_workers,
        timeout=config.dist_timeout,
        start_timeout=config.dist_start_timeout,
        batch_size=batch_size,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=data.num_workers > 0,
        drop_last=False,
    )
    return DataSpec(loader, get_num_samples_in_batch=rows_in_batch, split_batch=split_batch), manifests


def has_microbatches(config: Config, batch_size: int) -> bool:
    size = config.device_train_microbatch_size
    return size == "auto" or int(size) < batch_size


def build_eval_loader(
    config: Config, whole_batches: bool = False, row_ids: Sequence[int] | None = None
) -> tuple[DataSpec | None, list[Manifest]]:
    """The loader of `data.eval` and its manifests; None and none if no data is given.

    Args:
        whole_batches: deal batches instead of rows to the ranks, see `BatchesOfRank`.
        row_ids: with `whole_batches`, the rows to read; None: all.
    """
    data = config.data.eval
    if not data.is_given:
        return None, []
    streams = streams_of("data.eval", data)
    manifests = check_folders(config, "data.eval", streams)
    of_rank = streams, dist.get_global_rank(), dist.get_world_size()
    batch_size = config.device_eval_batch_size
    loader = RowLoader(
        BatchesOfRank(*of_rank, batch_size, data.num_workers, row_ids)
        if whole_batches
        else EvaluationDataset(*of_rank),
        key="data.eval",
        min_rejected=int(any(manifest.kind == PREFERENCE for manifest in manifests)),
        num_workers=data.num_workers,
        timeout=config.dist_timeout,
        batch_size=batch_size,
        pin_memory=torch.cuda.is_available(),
    )
    return DataSpec(loader, get_num_samples_in_batch=rows_in_batch, split_batch=lambda batch, _: [batch]), manifests


def check_folders(config: Config, key: str, streams: Sequence[StreamConfig]) -> list[Manifest]:
    """The manifests of the streams, after all checks of a folder that are possible without reading its shards.

    Raises:
        UserError: on all ranks, if a folder of one of them is missing, corrupted or does not fit the model.
    """

    def check() -> list[Manifest]:
        for stream in streams:
            fetch_descriptions(stream)
        return check_data(config, key, streams)

    manifests = on_all_ranks(check)
    for manifest in manifests:
        shards = read_index(Path(manifest.folder))
        if dist.get_global_rank() == 0 and any(preferred(shard.stored.hashes) is None for shard in shards):
            log.warning(
                "%s has no hashes of its shards: corruption that keeps their size is not noticed; convert the data "
                "with --hashes xxh64",
                manifest.folder,
            )
    return manifests


def on_all_ranks(check: Callable[[], T]) -> T:
    """Runs a check and raises the error of one rank on all ranks, so that none waits for a rank that has ended."""
    results: list[T] = []
    message = None
    try:
        results.append(check())
    except UserError as error:
        message = str(error)
    if first := next((other for other in dist.all_gather_object(message) if other), None):
        raise UserError(first)
    return results[0]
