"""Config to the data loaders of training and evaluation."""

from collections.abc import Sequence
from pathlib import Path

import torch
from composer import DataSpec
from composer.utils import dist
from streaming import StreamingDataLoader
from streaming.base.storage import CloudDownloader
from torch.utils.data import DataLoader

from ugt_composer.config import Config, StreamConfig
from ugt_composer.data.collate import collate
from ugt_composer.data.dataset import EvaluationDataset, PreferenceDataset, RecommendDataset, training_streams
from ugt_composer.data.manifest import FILE_NAME, Manifest, check_data, streams_of
from ugt_composer.errors import UserError
from ugt_composer.microbatch import rows_in_batch, split_batch
from ugt_composer.preflight import check_kinds, device_batch_size

DOWNLOAD_TIMEOUT = 60.0  # seconds, for one small file


def build_train_loader(config: Config) -> tuple[DataSpec, list[Manifest]]:
    """Streams `data.train`; each rank gets global_train_batch_size / world_size rows a batch. Also the manifests.

    Raises:
        UserError: the data is missing, does not fit the model, or the batch does not divide over the ranks.
    """
    data, batch_size = config.data.train, device_batch_size(config, dist.get_world_size())
    streams = streams_of("data.train", data)
    fetch_manifests(streams)
    manifests = check_data(config, "data.train", streams)
    check_kinds(config, manifests)
    for manifest in manifests:
        if manifest.rows < data.num_canonical_nodes:
            raise UserError(
                f"{manifest.folder} has {manifest.rows} rows, fewer than data.train.num_canonical_nodes "
                f"({data.num_canonical_nodes}); set that to 1"
            )
    dataset_class = PreferenceDataset if config.loss.lambda_preference > 0 else RecommendDataset
    dataset = dataset_class(
        streams=training_streams(streams),
        batch_size=batch_size,
        shuffle=data.shuffle,
        shuffle_seed=config.seed,
        shuffle_block_size=data.shuffle_block_size,
        num_canonical_nodes=data.num_canonical_nodes,
        predownload=data.predownload,
        cache_limit=data.cache_limit,
    )
    loader = StreamingDataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=collate,
        num_workers=data.num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=data.num_workers > 0,
        drop_last=False,
        generator=torch.Generator(),  # its own, so that where the loader starts anew draws nothing from the model
    )
    return DataSpec(loader, get_num_samples_in_batch=rows_in_batch, split_batch=split_batch), manifests


def fetch_manifests(streams: Sequence[StreamConfig]) -> None:
    """Brings the manifests of remote streams to this machine, so that they are checked like local ones.

    Raises:
        UserError: the remote has none, or cannot be reached.
    """
    for stream in streams:
        if stream.remote is None or dist.get_local_rank() != 0:
            continue
        source, target = f"{stream.remote.rstrip('/')}/{FILE_NAME}", Path(str(stream.local)) / FILE_NAME
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            CloudDownloader.direct_download(source, str(target), DOWNLOAD_TIMEOUT)
        except Exception as error:  # every store has errors of its own
            raise UserError(f"{source}: cannot be fetched ({str(error).splitlines()[0]})") from None
    dist.barrier()


def build_eval_loader(config: Config) -> DataSpec | None:
    """Indexes `data.eval`; None where no data is given."""
    data = config.data.eval
    if not data.is_given:
        return None
    streams = streams_of("data.eval", data)
    fetch_manifests(streams)
    check_data(config, "data.eval", streams)
    dataset = EvaluationDataset(streams, dist.get_global_rank(), dist.get_world_size())
    loader = DataLoader(
        dataset,
        batch_size=config.device_eval_batch_size,
        collate_fn=collate,
        num_workers=data.num_workers,
        generator=torch.Generator(),  # its own, so that evaluating does not change what training draws next
    )
    return DataSpec(loader, get_num_samples_in_batch=rows_in_batch, split_batch=lambda batch, _: [batch])
