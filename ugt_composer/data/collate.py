"""Packed rows to a padded batch, without a Python loop over tokens.

B rows, S/T/N the longest history, target and rejected list of the batch.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from ugt_composer.data import codec
from ugt_composer.data.batch import Batch
from ugt_composer.vocabulary import IGNORE_INDEX, ITEM, PAD

FLOAT = 4  # bytes


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
        ValueError: a row is not of this package's codec version or not as long as its header promises, or the rows
            differ in integer width.
    """
    joined = np.frombuffer(b"".join([row.data for row in rows]), np.uint8)
    sizes = np.fromiter((len(row.data) for row in rows), np.int64, len(rows))
    headers = _headers(joined, sizes)
    width = int(headers["width"][0])
    dtype = codec.DTYPES[width]
    payload = joined.view(dtype)
    # Where the rows' integers begin, in integers.
    starts = (sizes.cumsum() - sizes + codec.HEADER.size) // width
    counts = np.fromiter((row.counts for row in rows), bool, len(rows))
    ids = np.fromiter((row.row_id for row in rows), np.int64, len(rows))
    s, t, n = (headers[name].astype(np.int64) for name in ("encoder", "decoder", "rejected"))
    scores = headers["score"]
    order = np.arange(len(rows))
    if longest_first:
        order = np.lexsort((-t, -s))
        starts, counts, ids, s, t, n, scores = (one[order] for one in (starts, counts, ids, s, t, n, scores))

    encoder, encoder_mask = _pad(payload, starts, s, codec.ENCODER_COLUMNS)
    decoder, decoder_mask = _pad(payload, starts + s * codec.ENCODER_COLUMNS, t, codec.DECODER_COLUMNS)
    starts = starts + s * codec.ENCODER_COLUMNS + t * codec.DECODER_COLUMNS
    rejected, rejected_mask = _pad(payload, starts, np.where(counts, n, 0), codec.REJECTED_COLUMNS, min_rejected)
    labels = decoder[..., 5:].astype(np.int64)
    labels[(labels == np.iinfo(dtype).max) | ~decoder_mask[..., None] | ~counts[:, None, None]] = IGNORE_INDEX
    # Padding gets a token type that exists; the masks say that it does not count.
    decoder[..., 4][~decoder_mask] = ITEM
    batch: dict[str, Tensor] = {
        **_inputs("encoder", encoder, encoder_mask),
        **_inputs("decoder", decoder, decoder_mask),
        "labels": _integers(labels),
        "rejected_ids": _integers(rejected),
        "rejected_mask": _tensor(rejected_mask),
        "preference_score": _tensor(scores),
        "row_ids": _tensor(ids),
        "row_mask": _tensor(counts),
    }
    has_reference = (headers["flags"] & codec.HAS_REFERENCE) > 0
    if (has_reference | (headers["rejected"] == 0)).all() and has_reference.any():
        batch["reference_logps"] = _reference(joined, sizes, headers, order, rejected_mask.shape[1])
    lengths = {"encoder_lengths": s.tolist(), "decoder_lengths": t.tolist()} if longest_first else {}
    return cast(Batch, batch | lengths)


def _headers(joined: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The headers of rows that lie one after the other in `joined`, once they are known to be true."""
    if sizes.min() < codec.HEADER.size:
        raise ValueError(f"a row of {sizes.min()} bytes is shorter than its header ({codec.HEADER.size} bytes)")
    places = (sizes.cumsum() - sizes)[:, None] + np.arange(codec.HEADER.size)
    headers = joined[places].view(codec.HEADER_FIELDS)[:, 0]
    versions, widths = np.unique(headers["version"]).tolist(), np.unique(headers["width"]).tolist()
    if versions != [codec.VERSION] or len(widths) > 1 or widths[0] not in codec.DTYPES:
        raise ValueError(
            f"rows of codec versions {versions} and integer widths {widths} in one batch; "
            f"expected version {codec.VERSION} and one width"
        )
    numbers = (
        codec.ENCODER_COLUMNS * headers["encoder"].astype(np.int64)
        + codec.DECODER_COLUMNS * headers["decoder"].astype(np.int64)
        + codec.REJECTED_COLUMNS * headers["rejected"].astype(np.int64)
    )
    users = headers["users"].astype(np.int64)
    promised = codec.HEADER.size + widths[0] * numbers + users + -users % widths[0] + _reference_bytes(headers)
    if (wrong := promised != sizes).any():
        raise ValueError(f"a row of {sizes[wrong][0]} bytes, its header promises {promised[wrong][0]}")
    return headers


def _pad(
    payload: np.ndarray, starts: np.ndarray, lengths: np.ndarray, columns: int, least: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Segments of a flat array, (length, columns) each, to (B, longest, columns) and their mask (B, longest)."""
    mask = np.arange(lengths.max(initial=least)) < lengths[:, None]
    size = mask.shape[1] * columns
    if size == 0:
        return np.zeros((*mask.shape, columns), payload.dtype), mask
    # As much of the array for each as the longest takes: copies of whole stretches, not of single integers.
    behind = np.zeros(max(0, int(starts.max()) + size - len(payload)), payload.dtype)
    taken = sliding_window_view(np.concatenate((payload, behind)), size)[starts]
    own = np.arange(size) < columns * lengths[:, None]
    return np.where(own, taken, payload.dtype.type(PAD)).reshape(*mask.shape, columns), mask


def _reference_bytes(headers: np.ndarray) -> np.ndarray:
    """What the log-probabilities at the end of each row take."""
    has = (headers["flags"] & codec.HAS_REFERENCE) > 0
    return np.where(has, FLOAT * (1 + headers["rejected"].astype(np.int64)), 0)


def _reference(joined: np.ndarray, sizes: np.ndarray, headers: np.ndarray, order: np.ndarray, rejected: int) -> Tensor:
    """log p of a reference model, (B, 1 + N) float32; 0 where there is no item."""
    taken = _reference_bytes(headers)
    places, counts = (sizes.cumsum() - taken)[order], (taken // FLOAT)[order]
    values, _ = _pad(joined, places, counts, FLOAT, least=1 + rejected)
    return _tensor(values.copy().view("<f4")[:, : 1 + rejected, 0])


def _inputs(side: str, tokens: np.ndarray, mask: np.ndarray) -> dict[str, Tensor]:
    return {
        f"{side}_ids": _integers(tokens[..., :3]),
        f"{side}_positions": _integers(tokens[..., 3]),
        f"{side}_token_types": _integers(tokens[..., 4]),
        f"{side}_mask": _tensor(mask),
    }


def _integers(array: np.ndarray) -> Tensor:
    copy = torch.empty(array.shape, dtype=torch.long)
    copy.numpy()[...] = array
    return copy


def _tensor(array: np.ndarray) -> Tensor:
    return torch.tensor(array)  # a copy: memory that NumPy owns can hang a process that exits on an error
