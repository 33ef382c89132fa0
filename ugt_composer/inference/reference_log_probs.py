"""The reference's log-probabilities, computed once and stored with the preference rows.

The reference never changes, and without dropout its log-probabilities of a row are the same in every epoch. If the rows
store them, training needs neither the reference's forward pass nor its weights (precompute_ref_log_probs in TRL).

They depend on the arithmetic of precision and strategy: if it is not the policy's, margins start at the difference of
the two instead of at 0. It is recorded in the manifest, which the run checks.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.checkpoint.portable import weights_hash
from ugt_composer.conversion.output import output_folder
from ugt_composer.conversion.shards import ShardWriter, write_index
from ugt_composer.data.codec import with_reference
from ugt_composer.data.collate import PackedRow, collate
from ugt_composer.data.evaluation_dataset import RowFolder
from ugt_composer.data.integrity import CATALOGUE_COPY, INDEX_NAME, MANIFEST_NAME
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
    progress: Callable[[int], Any] = lambda rows: None,
) -> int:
    """Copies a folder of preference rows and adds to each row log p of its chosen item and of its rejected ones.

    Args:
        reference: the model, on the device that it is to run on.
        model_folder: the folder that it was loaded from.
        precision: that of the training run, see `resolve_precision`.
        strategy: see `Strategy.arithmetic`.
        progress: called after each batch with its number of rows.

    Returns: the number of rows.

    Raises:
        UserError: `out` exists and `overwrite` is not set, or a shard is corrupted.
    """
    rows, index = RowFolder(str(data), None), json.loads((data / INDEX_NAME).read_text("utf-8"))
    shard = index["shards"][0]
    device = next(reference.parameters()).device
    autocasts = strategy != "deepspeed"
    if strategy != "ddp":
        reference = reference.to(HALF_DTYPES.get(precision, torch.float32))
    with output_folder(out, overwrite) as output:
        writer = ShardWriter(output.work, shard["compression"], shard["hashes"], shard["size_limit"])
        for begin in range(0, len(rows), batch_size):
            packed = [rows[number] for number in range(begin, min(begin + batch_size, len(rows)))]
            batch = collate([PackedRow(number, row) for number, row in enumerate(packed)], min_rejected=1)
            on_device = {name: tensor.to(device) for name, tensor in batch.items()}  # type: ignore[attr-defined]
            with precision_context(precision if autocasts else "fp32"):
                logps = reference(on_device, trie)["logps"].float().cpu().numpy()
            for row, values, count in zip(packed, logps, batch["rejected_mask"].sum(1).tolist(), strict=True):
                writer.add_row(with_reference(row, values[: 1 + count]))
            progress(len(packed))
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
