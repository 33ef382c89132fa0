"""The shared memory that data workers need.

They hand batches over in /dev/shm, which has 64 MB in a container unless that is started with more. If it is full, a
worker ends without saying so.
"""

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ugt_composer.config.checks import device_batch_size
from ugt_composer.config.schema import Config
from ugt_composer.data.manifest import Manifest
from ugt_composer.errors import UserError
from ugt_composer.parallelism.activations import HISTORY_TOKEN, TARGET_TOKEN

FOLDER = Path("/dev/shm")
PREFETCHED = 2  # batches of each worker that wait to be used, PyTorch's default
REJECTED_ITEM, ROW = 25, 13  # bytes: three ids and the mask; id, score and mask of the row
SMALL_PARTS = 2**20  # bytes of Streaming's states and locks, of queues, and of the ends of pages
ROW_ID = 8  # bytes of a row in the order of an epoch, which Streaming shares between the processes of a machine
MB = 2**20  # as in Docker and Kubernetes


def check_shared_memory(
    config: Config, train: Sequence[Manifest], evaluation: Sequence[Manifest], folder: Path = FOLDER
) -> None:
    """UserError if the batches of the data workers, or the order of an epoch's rows, do not fit into shared memory.

    Args:
        train, evaluation: the manifests of the data, as far as it is on this machine.
        folder: where shared memory is; a system without it has no limit for it.
    """
    if not folder.is_dir() or not train:
        return
    ranks, world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("WORLD_SIZE", "1"))
    parts = [
        ("data.train", config.data.train.num_workers, device_batch_size(config, world_size), train),
        ("data.eval", config.data.eval.num_workers, config.device_eval_batch_size, evaluation),
    ]
    need, reasons = 0, []
    for key, workers, rows, manifests in parts:
        batches = min(workers * PREFETCHED, math.ceil(sum(m.rows for m in manifests) / (rows * world_size)))
        if workers == 0 or batches == 0:
            continue
        size = batch_bytes(manifests, rows)
        need += ranks * batches * size
        batches_of = f"{batches} batches of {megabytes(size)} each"
        reasons.append(f"{batches_of}{f' and {ranks} ranks' if ranks > 1 else ''} ({key}.num_workers is {workers})")
    order = ROW_ID * sum(manifest.rows for manifest in train)
    who, otherwise = "the data workers need", ", or lower num_workers (0 needs none for batches)"
    if order > need:
        need, reasons = order, [f"the order of {sum(m.rows for m in train):,} rows"]
        who, otherwise = "the training data needs", ""
    need += SMALL_PARTS
    if need > free_bytes(folder):
        raise UserError(
            f"{about(folder)}, but {who} about {megabytes(need)} of it, for {' and '.join(reasons)}; "
            f"{remedy(need)}{otherwise}"
        )


def batch_bytes(manifests: Sequence[Manifest], rows: int) -> int:
    """Bytes of a batch of this many rows, padded to the history that half of such batches do not exceed."""
    lengths: Counter[int] = Counter()
    for manifest in manifests:
        lengths.update(manifest.history_lengths or {manifest.longest[0]: manifest.rows})
    history, below, total = 0, 0, lengths.total()
    for history in sorted(lengths):
        below += lengths[history]
        if (below / total) ** rows >= 0.5:
            break
    target, rejected = (max(manifest.longest[side] for manifest in manifests) for side in (1, 2))
    return rows * (history * HISTORY_TOKEN + target * TARGET_TOKEN + rejected * REJECTED_ITEM + ROW)


def about(folder: Path = FOLDER) -> str:
    """The folder with its size and what is free of it."""
    facts = os.statvfs(folder)
    size = megabytes(facts.f_blocks * facts.f_frsize)
    return f"{folder}, the shared memory, has {size}, of which {megabytes(free_bytes(folder))} are free"


def free_bytes(folder: Path = FOLDER) -> int:
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize


def remedy(need: int = 0) -> str:
    """How to get more, at least twice what is needed."""
    size = 2 ** max(8, math.ceil(math.log2(max(1, 2 * need / MB))))
    return (
        f"start the container with more, such as docker run --shm-size={size}m (Kubernetes: a volume `emptyDir: "
        f"{{medium: Memory, sizeLimit: {size}Mi}}` mounted at /dev/shm)"
    )


def megabytes(number: int) -> str:
    return f"{number / MB:,.0f} MB" if number >= 10 * MB else f"{number / MB:.1f} MB"
