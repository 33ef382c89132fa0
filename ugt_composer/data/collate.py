"""Turns packed rows into a padded batch, without a Python loop over tokens.

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

FLOAT = MEMBER = 4  # bytes


class PackedRow(NamedTuple):
    """A row as the data sets yield it, still packed.

    `counts` (a verb) is False for a filler row, which only gives every rank equally many rows: its labels are ignored,
    its rejected items are dropped and its `row_mask` is False.
    """

    row_id: int
    data: bytes
    counts: bool = True


def collate(
    rows: Sequence[PackedRow], min_rejected: int = 0, longest_first: bool = False, with_lengths: bool = False
) -> Batch:
    """Unpacks B rows and pads them to the longest row of the batch: PAD ids, −100 labels, False masks.

    Args:
        min_rejected: the smallest N. With 1, batches with and without preferences run the same layers, as they must
            on ranks that all-gather sharded weights together.
        longest_first: sorts the rows by history length, then by target length, so that microbatches hold rows of
            similar length. The first microbatch is the largest: if it does not fit into memory, the step fails at once.
        with_lengths: adds the lengths of histories and targets and the number of labelled tokens of each row, which
            `split_batch` needs.

    Raises:
        ValueError: a row has another codec version than this package or another length than its header implies, or
            the rows differ in integer width.
    """
    joined = np.frombuffer(b"".join([row.data for row in rows]), np.uint8)
    sizes = np.fromiter((len(row.data) for row in rows), np.int64, len(rows))
    headers = _headers(joined, sizes)
    width = int(headers["width"][0])
    dtype = codec.DTYPES[width]
    payload = joined.view(dtype)
    # Index in `payload` of each row's first integer.
    starts = (sizes.cumsum() - sizes + codec.HEADER.size) // width
    counts = np.fromiter((row.counts for row in rows), bool, len(rows))
    ids = np.fromiter((row.row_id for row in rows), np.int64, len(rows))
    s, t, n = (headers[name].astype(np.int64) for name in ("encoder", "decoder", "rejected"))
    scores = headers["score"]
    order = np.arange(len(rows))
    if longest_first:
        order = np.lexsort((-t, -s))
        starts, counts, ids, s, t, n, scores = (values[order] for values in (starts, counts, ids, s, t, n, scores))

    encoder, encoder_mask = _pad(payload, starts, s, codec.ENCODER_COLUMNS)
    decoder, decoder_mask = _pad(payload, starts + s * codec.ENCODER_COLUMNS, t, codec.DECODER_COLUMNS)
    starts = starts + s * codec.ENCODER_COLUMNS + t * codec.DECODER_COLUMNS
    rejected, rejected_mask = _pad(payload, starts, np.where(counts, n, 0), codec.REJECTED_COLUMNS, min_rejected)
    labels = decoder[..., codec.LABELS].astype(np.int64)
    labels[(labels == np.iinfo(dtype).max) | ~decoder_mask[..., None] | ~counts[:, None, None]] = IGNORE_INDEX
    is_labelled = (labels != IGNORE_INDEX).any(axis=2)
    # Padding needs a valid token type for the embedding lookup; the masks exclude it.
    decoder[..., codec.TOKEN_TYPE][~decoder_mask] = ITEM
    batch: dict[str, Tensor] = {
        **_inputs("encoder", encoder, encoder_mask),
        "encoder_tokens": _tensor(encoder_mask.ravel().nonzero()[0]),
        **_inputs("decoder", decoder, decoder_mask),
        **_actions_and_times(joined, sizes, headers, order, s, t),
        "labels": _integers(labels),
        "label_tokens": _tensor(is_labelled.ravel().nonzero()[0]),
        "rejected_ids": _integers(rejected),
        "rejected_mask": _tensor(rejected_mask),
        "preference_score": _tensor(scores),
        "row_ids": _tensor(ids),
        "row_mask": _tensor(counts),
    }
    has_reference = (headers["flags"] & codec.HAS_REFERENCE) > 0
    # A batch without pairs has places for them if others have pairs, and then also places for the reference's values.
    if (has_reference | (headers["rejected"] == 0)).all() and (has_reference.any() or rejected_mask.shape[1] > 0):
        batch["reference_logps"] = _reference(joined, sizes, headers, order, rejected_mask.shape[1])
    if (headers["flags"] & codec.HAS_MEMBERS).any():
        batch["label_members"] = _members(joined, sizes, headers, order, decoder_mask.shape[1])
    if not with_lengths:
        return cast(Batch, batch)
    numbers = {"encoder_lengths": s, "decoder_lengths": t, "label_counts": is_labelled.sum(axis=1)}
    return cast(Batch, batch | {name: values.tolist() for name, values in numbers.items()})


def _headers(joined: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Reads and checks the headers of the rows that are concatenated in `joined`."""
    if sizes.min() < codec.HEADER.size:
        raise ValueError(f"a row of {sizes.min()} bytes is shorter than its header ({codec.HEADER.size} bytes)")
    header_bytes = (sizes.cumsum() - sizes)[:, None] + np.arange(codec.HEADER.size)
    headers = joined[header_bytes].view(codec.HEADER_FIELDS)[:, 0]
    versions, widths = np.unique(headers["version"]).tolist(), np.unique(headers["width"]).tolist()
    known = (headers["flags"] <= codec.ALL_FLAGS) & (headers["version"] == codec.version_of(headers["flags"]))
    if not known.all() or len(widths) > 1 or widths[0] not in codec.DTYPES:
        raise ValueError(
            f"rows of codec versions {versions} and integer widths {widths} in one batch; "
            f"expected versions {' and '.join(map(str, codec.VERSIONS))} and one width"
        )
    user, s, t, n = (headers[name].astype(np.int64) for name in ("user_bytes", "encoder", "decoder", "rejected"))
    flags = headers["flags"].astype(np.int64)
    expected = codec.size_without_reference(widths[0], user, s, t, n, flags) + codec.extra_bytes(flags, t, n)
    if (wrong := expected != sizes).any():
        raise ValueError(f"a row has {sizes[wrong][0]} bytes, but its header implies {expected[wrong][0]}")
    return headers


def _pad(
    payload: np.ndarray, starts: np.ndarray, lengths: np.ndarray, columns: int, min_length: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Pads segments of a flat array, (length, columns) each. Returns (B, longest, columns) and a mask (B, longest)."""
    mask = np.arange(lengths.max(initial=min_length)) < lengths[:, None]
    size = mask.shape[1] * columns
    if size == 0:
        return np.zeros((*mask.shape, columns), payload.dtype), mask
    # Copies a window of the longest segment's size for every row, then pads its end: faster than single integers.
    tail = np.zeros(max(0, int(starts.max()) + size - len(payload)), payload.dtype)
    windows = sliding_window_view(np.concatenate((payload, tail)), size)[starts]
    in_segment = np.arange(size) < columns * lengths[:, None]
    return np.where(in_segment, windows, payload.dtype.type(PAD)).reshape(*mask.shape, columns), mask


def _reference_bytes(headers: np.ndarray) -> np.ndarray:
    """(B,) bytes of the reference log-probabilities at the end of each row."""
    has_reference = (headers["flags"] & codec.HAS_REFERENCE) > 0
    return np.where(has_reference, FLOAT * (1 + headers["rejected"].astype(np.int64)), 0)


def _reference(joined: np.ndarray, sizes: np.ndarray, headers: np.ndarray, order: np.ndarray, rejected: int) -> Tensor:
    """Reference log-probabilities, float32 (B, 1 + N); 0 where there is no item."""
    byte_counts = _reference_bytes(headers)
    starts, counts = (sizes.cumsum() - byte_counts)[order], (byte_counts // FLOAT)[order]
    values, _ = _pad(joined, starts, counts, FLOAT, min_length=1 + rejected)
    return _tensor(values.copy().view("<f4")[:, : 1 + rejected, 0])


def _members(joined: np.ndarray, sizes: np.ndarray, headers: np.ndarray, order: np.ndarray, targets: int) -> Tensor:
    """Numbers of the labels' items among those that share their semantic IDs, int64 (B, T); -1 where unknown."""
    has_members = (headers["flags"] & codec.HAS_MEMBERS) > 0
    byte_counts = np.where(has_members, MEMBER * headers["decoder"].astype(np.int64), 0)
    starts, counts = (sizes.cumsum() - byte_counts)[order], (byte_counts // MEMBER)[order]
    values, mask = _pad(joined, starts, counts, MEMBER, min_length=targets)
    return _integers(np.where(mask, values.copy().view("<u4")[..., 0].astype(np.int64), -1))


def _actions_and_times(
    joined: np.ndarray, sizes: np.ndarray, headers: np.ndarray, order: np.ndarray, s: np.ndarray, t: np.ndarray
) -> dict[str, Tensor]:
    """`encoder_actions`, `encoder_times` (B, S) and `decoder_times` (B, T). `s` and `t` are in the batch's order."""
    headers = headers[order]
    width, flags = int(headers["width"][0]), headers["flags"].astype(np.int64)
    user_bytes, n = headers["user_bytes"].astype(np.int64), headers["rejected"].astype(np.int64)
    starts = codec.input_starts(width, user_bytes, s, t, n, flags)
    values: dict[str, Tensor] = {}
    for name, flag, start, lengths, dtype in (
        ("encoder_actions", codec.HAS_ACTIONS, starts[0], s, codec.DTYPES[width]),
        ("encoder_times", codec.HAS_TIMES, starts[1], s, codec.TIME),
        ("decoder_times", codec.HAS_TARGET_TIMES, starts[2], t, codec.TIME),
    ):
        unknown = 0 if flag == codec.HAS_ACTIONS else codec.UNKNOWN_TIME
        has = (flags & flag) > 0
        if not has.any():
            values[name] = torch.full((len(s), int(lengths.max())), unknown)
            continue
        row_starts = (sizes.cumsum() - sizes)[order] + start
        stored, mask = _pad(joined, row_starts, np.where(has, lengths, 0), dtype.itemsize, int(lengths.max()))
        stored = stored.copy().view(dtype)[..., 0]
        values[name] = _integers(np.where(mask, stored if unknown == 0 else codec.seconds(stored), unknown))
    return values


def _inputs(side: str, tokens: np.ndarray, mask: np.ndarray) -> dict[str, Tensor]:
    return {
        f"{side}_ids": _integers(tokens[..., codec.IDS]),
        f"{side}_positions": _integers(tokens[..., codec.POSITION]),
        f"{side}_token_types": _integers(tokens[..., codec.TOKEN_TYPE]),
        f"{side}_mask": _tensor(mask),
    }


def _integers(array: np.ndarray) -> Tensor:
    copy = torch.empty(array.shape, dtype=torch.long)
    copy.numpy()[...] = array
    return copy


def _tensor(array: np.ndarray) -> Tensor:
    return torch.tensor(array)  # a copy: a tensor on NumPy's memory can hang a process that exits with an error
