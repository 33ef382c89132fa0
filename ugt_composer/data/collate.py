"""Packed rows to a padded batch, without a Python loop over tokens.

B rows, S/T/N the longest history, target and rejected list of the batch.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ugt_composer.data import codec
from ugt_composer.data.batch import Batch
from ugt_composer.vocabulary import IGNORE_INDEX, ITEM, PAD


class PackedRow(NamedTuple):
    """A row as the data sets yield it, still packed.

    `counts` is False for a row that stands in only to make the ranks even: its labels and rejected items are not
    loaded and `row_mask` is False.
    """

    row_id: int
    data: bytes
    counts: bool = True


def collate(rows: Sequence[PackedRow], min_rejected: int = 0, longest_first: bool = False) -> Batch:
    """Unpacks B rows and pads them to the longest of the batch: PAD ids, −100 labels, False masks.

    Args:
        min_rejected: the least N. With 1, batches with and without preferences go through the same layers, which
            ranks that gather sharded weights together have to.
        longest_first: sorts the rows by history, then by target, and tells their lengths, so that microbatches hold
            rows of like lengths. The first one is the largest: what does not fit into memory fails at once.

    Raises:
        ValueError: a row is not of this package's codec version, or the rows differ in integer width.
    """
    headers = [codec.HEADER.unpack_from(row.data) for row in rows]
    versions, widths, _, s, t, n, _, scores = (np.array(column) for column in zip(*headers, strict=True))
    if (versions != codec.VERSION).any() or (widths != widths[0]).any() or int(widths[0]) not in codec.DTYPES:
        raise ValueError(
            f"rows of codec versions {sorted(set(versions.tolist()))} and integer widths "
            f"{sorted(set(widths.tolist()))} in one batch; expected version {codec.VERSION} and one width"
        )
    if longest_first:
        order = np.lexsort((-t, -s))
        rows, s, t, n, scores = [rows[i] for i in order], s[order], t[order], n[order], scores[order]
    dtype = codec.DTYPES[int(widths[0])]
    counts = np.array([row.counts for row in rows])

    payload = np.concatenate(
        [
            np.frombuffer(
                row.data,
                dtype,
                codec.ENCODER_COLUMNS * a + codec.DECODER_COLUMNS * b + codec.REJECTED_COLUMNS * c,
                codec.HEADER.size,
            )
            for row, a, b, c in zip(rows, s.tolist(), t.tolist(), n.tolist(), strict=True)
        ]
    ).astype(np.int64)
    sizes = np.stack((s * codec.ENCODER_COLUMNS, t * codec.DECODER_COLUMNS, n * codec.REJECTED_COLUMNS), axis=1)
    starts = np.concatenate(([0], sizes.ravel().cumsum()[:-1])).reshape(sizes.shape)

    encoder, encoder_mask = _pad(payload, starts[:, 0], s, codec.ENCODER_COLUMNS)
    decoder, decoder_mask = _pad(payload, starts[:, 1], t, codec.DECODER_COLUMNS)
    rejected, rejected_mask = _pad(payload, starts[:, 2], np.where(counts, n, 0), codec.REJECTED_COLUMNS, min_rejected)
    labels = decoder[..., 5:]
    labels[(labels == np.iinfo(dtype).max) | ~decoder_mask[..., None] | ~counts[:, None, None]] = IGNORE_INDEX
    # Padding gets a token type that exists; the masks say that it does not count.
    decoder[..., 4][~decoder_mask] = ITEM
    batch: dict[str, Tensor] = {
        **_inputs("encoder", encoder, encoder_mask),
        **_inputs("decoder", decoder, decoder_mask),
        "labels": _tensor(labels),
        "rejected_ids": _tensor(rejected),
        "rejected_mask": _tensor(rejected_mask),
        "preference_score": _tensor(scores.astype(np.float32)),
        "row_ids": torch.tensor([row.row_id for row in rows], dtype=torch.long),
        "row_mask": _tensor(counts),
    }
    lengths = {"encoder_lengths": s.tolist(), "decoder_lengths": t.tolist()} if longest_first else {}
    return cast(Batch, batch | lengths)


def _pad(
    payload: np.ndarray, starts: np.ndarray, lengths: np.ndarray, columns: int, least: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Segments of a flat array, (length, columns) each, to (B, longest, columns) and their mask (B, longest)."""
    mask = np.arange(lengths.max(initial=least)) < lengths[:, None]
    padded = np.full((*mask.shape, columns), PAD, dtype=np.int64)
    # Where each valid token lies in the flat array: its segment's start + its place in the segment.
    place = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)[mask]
    first = np.repeat(starts, lengths) + place * columns
    padded[mask] = payload[first[:, None] + np.arange(columns)]
    return padded, mask


def _inputs(side: str, tokens: np.ndarray, mask: np.ndarray) -> dict[str, Tensor]:
    return {
        f"{side}_ids": _tensor(tokens[..., :3]),
        f"{side}_positions": _tensor(tokens[..., 3]),
        f"{side}_token_types": _tensor(tokens[..., 4]),
        f"{side}_mask": _tensor(mask),
    }


def _tensor(array: np.ndarray) -> Tensor:
    return torch.tensor(array)  # a copy: memory that NumPy owns can hang a process that exits on an error
