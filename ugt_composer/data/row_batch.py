"""Packs many rows at once, into the same bytes as `codec.encode_row`."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ugt_composer.data.codec import (
    HAS_ACTIONS,
    HAS_MEMBERS,
    HAS_TARGET_TIMES,
    HAS_TIMES,
    HEADER_FIELDS,
    Row,
    extra_bytes,
    size_without_reference,
    version_of,
)

SIZED_HEADER = np.dtype([("size", "<u4"), *HEADER_FIELDS.descr])  # preceded by the size of the row in bytes
PADDING = tuple(bytes(size) for size in range(4))


@dataclass(frozen=True)
class RowBatch:
    """R rows with their tokens concatenated, for `encode_rows`.

    `encoder`, `decoder` and `rejected` have the stored dtype, with ignored labels as its largest value, or, from
    `batch_of`, those of `Row`.

    Attributes:
        users: R user ids in UTF-8, each of at most 65,535 bytes.
        encoder: (ΣS, 5).
        decoder: (ΣT, 8).
        rejected: (ΣN, 3).
        encoder_lengths, decoder_lengths, rejected_lengths: (R,), each at most 65,535.
        scores: (R,) preference scores.
        members: (ΣT,) uint32, or None if no row has them.
        encoder_actions: (ΣS,) of the stored dtype, or None if no row has them.
        encoder_times: (ΣS,) seconds as stored, or None if no row has them.
        decoder_times: (ΣT,) seconds as stored, or None if no row has them.
    """

    users: list[bytes]
    encoder: np.ndarray
    decoder: np.ndarray
    rejected: np.ndarray
    encoder_lengths: np.ndarray
    decoder_lengths: np.ndarray
    rejected_lengths: np.ndarray
    scores: np.ndarray
    members: np.ndarray | None = None
    encoder_actions: np.ndarray | None = None
    encoder_times: np.ndarray | None = None
    decoder_times: np.ndarray | None = None


def batch_of(rows: Sequence[Row]) -> RowBatch:
    """Concatenates the tokens of rows, at least one, as they are: int64, ignored labels -100."""
    return RowBatch(
        users=[row.user_id.encode("utf-8") for row in rows],
        encoder=np.concatenate([row.encoder for row in rows]),
        decoder=np.concatenate([row.decoder for row in rows]),
        rejected=np.concatenate([row.rejected for row in rows]),
        encoder_lengths=np.array([len(row.encoder) for row in rows]),
        decoder_lengths=np.array([len(row.decoder) for row in rows]),
        rejected_lengths=np.array([len(row.rejected) for row in rows]),
        scores=np.array([row.preference_score for row in rows], np.float32),
    )


def encode_rows(batch: RowBatch) -> tuple[bytes, np.ndarray]:
    """Packs many rows into the same bytes as `encode_row`, at a fraction of its cost.

    Returns:
        All rows, each preceded by its size as a uint32 (the layout of MDS shards), and these sizes, int64 (R,).
    """
    width = batch.encoder.itemsize
    users = [user + PADDING[-len(user) % width] for user in batch.users]
    parts = [_row_parts(batch.encoder, batch.encoder_lengths), _row_parts(batch.decoder, batch.decoder_lengths)]
    if len(batch.rejected):
        parts.append(_row_parts(batch.rejected, batch.rejected_lengths))
    parts.append(users)
    flags = 0
    for flag, values, lengths in (
        (HAS_ACTIONS, batch.encoder_actions, batch.encoder_lengths),
        (HAS_TIMES, batch.encoder_times, batch.encoder_lengths),
        (HAS_TARGET_TIMES, batch.decoder_times, batch.decoder_lengths),
        (HAS_MEMBERS, batch.members, batch.decoder_lengths),
    ):
        if values is not None:
            flags |= flag
            parts.append(_row_parts(values[:, None], lengths))
    user_bytes = np.fromiter(map(len, batch.users), np.int64, len(users))
    sizes = size_without_reference(
        width, user_bytes, batch.encoder_lengths, batch.decoder_lengths, batch.rejected_lengths, flags
    ) + extra_bytes(flags, batch.decoder_lengths, batch.rejected_lengths)
    headers = np.zeros(len(users), SIZED_HEADER)
    headers["flags"] = flags
    headers["size"], headers["version"], headers["width"] = sizes, version_of(flags), width
    headers["user_bytes"] = user_bytes
    headers["encoder"], headers["decoder"] = batch.encoder_lengths, batch.decoder_lengths
    headers["rejected"], headers["score"] = batch.rejected_lengths, batch.scores
    header_parts = _row_parts(headers[:, None], np.ones(len(users), np.int64))
    return b"".join(chain.from_iterable(zip(header_parts, *parts, strict=True))), sizes


def _row_parts(values: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """The bytes of each row's part of `values`."""
    data = values.tobytes()
    ends = (np.cumsum(lengths) * values.shape[1] * values.itemsize).tolist()
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
