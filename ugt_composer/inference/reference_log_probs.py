"""The reference's log-probabilities, computed once and stored with the preference rows.

The reference never changes, and without dropout its log-probabilities of a row are the same in every epoch. If the rows
store them, training needs neither the reference's forward pass nor its weights (precompute_ref_log_probs in TRL).

They depend on the arithmetic of precision and strategy: if it is not the policy's, margins start at the difference of
the two instead of at 0. It is recorded in the manifest, which the run checks.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.checkpoint.portable import weights_hash
from ugt_composer.conversion.output import output_folder
from ugt_composer.conversion.shards import ShardWriter, write_index
from ugt_composer.data.codec import with_reference
from ugt_composer.data.collate import PackedRow, collate
from ugt_composer.data.evaluation_dataset import RowFolder
from ugt_composer.data.integrity import CATALOGUE_COPY, INDEX_NAME, MANIFEST_NAME
from ugt_composer.errors import UserError
from ugt_composer.job.ranks import Ranks
from ugt_composer.model.reference import Reference
from ugt_composer.parallelism.precision import precision_context
from ugt_composer.storage.hashed_file import file_hash

HALF_DTYPES = {"amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}


def write_reference_log_probs(
    reference: Reference,
    model_folder: Path,
    trie: ItemTrie | None,
    data: Path,
    out: Path,
    batch_size: int,
    precision: str,
    strategy: str,
    overwrite: bool,
    ranks: Ranks,
    progress: Callable[[int], Any] = lambda rows: None,
) -> int:
    """Copies a folder of preference rows and adds to each row log p of its chosen item and of its rejected ones.

    Args:
        reference: the model, on the device that it is to run on.
        model_folder: the folder that it was loaded from.
        precision: that of the training run, see `resolve_precision`.
        strategy: see `Strategy.arithmetic`.
        ranks: each computes the log-probabilities of its batches; rank 0 writes all rows, so that the folder does not
            depend on their number.
        progress: called with the number of rows that were written since the last call.

    Returns: the number of rows.

    Raises:
        UserError: `out` exists and `overwrite` is not set, or a shard is corrupted.
    """
    rows, index = RowFolder(str(data), None), json.loads((data / INDEX_NAME).read_text("utf-8"))
    shard = index["shards"][0]
    autocasts = strategy != "deepspeed"
    if strategy != "ddp":
        reference = reference.to(HALF_DTYPES.get(precision, torch.float32))
    score = partial(_log_probs, reference, trie, precision if autocasts else "fp32")
    scored = _score_on_ranks(score, rows, batch_size, ranks)
    with ExitStack() as until_published:
        open_output = partial(until_published.enter_context, output_folder(out, overwrite))
        output = ranks.agree(lambda: open_output() if ranks.is_first else None)
        if output is None:
            return sum(len(step) for step in scored)
        writer = ShardWriter(output.work, shard["compression"], shard["hashes"], shard["size_limit"])
        for step in scored:
            for number, values in step:
                writer.add_row(with_reference(rows[number], values))
            progress(len(step))
        writer.close()
        write_index(output.work, writer.shards)
        manifest = json.loads((data / MANIFEST_NAME).read_text("utf-8"))
        manifest["index_hash"] = f"xxh3_128:{file_hash('xxh3_128', output.work / INDEX_NAME)}"
        manifest["reference"] = weights_hash(model_folder)
        manifest |= {"reference_precision": precision, "reference_strategy": "ddp" if precision == "fp32" else strategy}
        (output.work / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
        if (data / CATALOGUE_COPY).is_file():
            shutil.copy(data / CATALOGUE_COPY, output.work)
        output.publish()
    return len(rows)


def _score_on_ranks(
    score: Callable[[list[bytes]], list[np.ndarray]], rows: RowFolder, batch_size: int, ranks: Ranks
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Scores a batch on each rank in each step. Yields on every rank the numbers and values of the rows of all."""
    batches = [range(begin, min(begin + batch_size, len(rows))) for begin in range(0, len(rows), batch_size)]
    for begin in range(0, len(batches), ranks.size):
        of_ranks = batches[begin : begin + ranks.size]
        own = of_ranks[ranks.number] if ranks.number < len(of_ranks) else range(0)
        values, error = [], None
        try:
            values = score([rows[number] for number in own])
        except UserError as corrupted_shard:
            error = corrupted_shard
        ranks.step(len(own), error)
        ranks.finish()
        yield list(zip(chain(*of_ranks), chain(*ranks.exchange(values)), strict=True))


def _log_probs(reference: Reference, trie: ItemTrie | None, precision: str, rows: list[bytes]) -> list[np.ndarray]:
    """Of each packed row float32 (1 + N): log p of its chosen item and of its N rejected ones."""
    if not rows:
        return []
    device = next(reference.parameters()).device
    batch = collate([PackedRow(number, row) for number, row in enumerate(rows)], min_rejected=1)
    on_device = {name: tensor.to(device) for name, tensor in batch.items()}  # type: ignore[attr-defined]
    with precision_context(precision):
        logps = reference(on_device, trie)["logps"].float().cpu().numpy()
    counts = batch["rejected_mask"].sum(1).tolist()
    return [values[: 1 + count] for values, count in zip(logps, counts, strict=True)]
