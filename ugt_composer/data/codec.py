"""One training row as bytes: the single column of an MDS shard.

Layout, version 1, little-endian:

    uint8   version (1)
    uint8   width: bytes per integer of the payload, 2 or 4
    uint16  U  length of user_id in bytes
    uint16  S  encoder tokens
    uint16  T  decoder tokens
    uint16  N  rejected items
    uint16  flags: 1 if log-probabilities of a reference model are stored, plus 2 if members are
    float32 preference score (1.0 if the row has none)
    uint    encoder  (S, 5): l1, l2, l3, position, token type
    uint    decoder  (T, 8): l1, l2, l3, position, token type, label l1, label l2, label l3
    uint    rejected (N, 3): l1, l2, l3
    bytes   user_id in UTF-8, padded with zero bytes to a multiple of `width`
    float32 reference (1 + N): log p of the chosen item and of each rejected one; only if its flag is set
    uint32  members (T): each label's number among the items that share its semantic ID; only if its flag is set, which
            excludes the other one

An ignored label (-100) is stored as the largest integer of the width, which nothing else may be. Rows hold what the
model sees: masked-out positions are removed and the decoder starts with BOS. A preference row has a decoder of length
one, BOS with the chosen item as its label, and N > 0 rejected items.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from ugt_composer.vocabulary import IGNORE_INDEX

VERSION = 1
HEADER = struct.Struct("<BBHHHHHf")
HAS_REFERENCE, HAS_MEMBERS = 1, 2  # bits of the flags
LARGEST_MEMBER = (1 << 31) - 1
HEADER_FIELDS = np.dtype(  # the layout of HEADER, to read or write many rows at once
    [
        ("version", "u1"),
        ("width", "u1"),
        ("user_bytes", "<u2"),
        ("encoder", "<u2"),
        ("decoder", "<u2"),
        ("rejected", "<u2"),
        ("flags", "<u2"),
        ("score", "<f4"),
    ]
)
FLAGS_AT = HEADER_FIELDS.fields["flags"][1]  # type: ignore[index]  # in bytes
SIZED_HEADER = np.dtype([("size", "<u4"), *HEADER_FIELDS.descr])  # preceded by the size of the row in bytes
ENCODER_COLUMNS = 5
DECODER_COLUMNS = 8
REJECTED_COLUMNS = 3
IDS, POSITION, TOKEN_TYPE, LABELS = slice(0, 3), 3, 4, slice(5, 8)  # columns of a token
PADDING = tuple(bytes(size) for size in range(4))
DTYPES: dict[int, np.dtype] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


@dataclass(frozen=True)
class Row:
    """A decoded row. Shapes: S history tokens, T target tokens, N rejected items.

    Attributes:
        user_id: the user's name in the input.
        encoder: int64 (S, 5), columns l1, l2, l3, position, token type.
        decoder: int64 (T, 8), the same five columns and the labels of the three levels (-100 = ignored).
        rejected: int64 (N, 3).
        preference_score: in (0, 1]; 1.0 if the row has none.
        reference: float32 (1 + N), log-probabilities of a reference model, or None.
        members: int64 (T,), the number of each label's item among those that share its semantic ID, or None.
    """

    user_id: str
    encoder: np.ndarray
    decoder: np.ndarray
    rejected: np.ndarray
    preference_score: float = 1.0
    reference: np.ndarray | None = None
    members: np.ndarray | None = None


def width_for(largest_id: int) -> int:
    """Bytes per integer if `largest_id` is the largest one stored; the all-ones value means an ignored label."""
    return 2 if largest_id < 0xFFFF else 4


def encode_row(row: Row, width: int) -> bytes:
    """Packs one row. Raises ValueError for a user id over 65,535 bytes or an integer that does not fit."""
    dtype = DTYPES[width]
    ignored = np.iinfo(dtype).max
    user = row.user_id.encode("utf-8")
    if len(user) > 0xFFFF:
        raise ValueError(f"user_id takes {len(user)} bytes, at most 65535 fit")
    payload = np.concatenate([row.encoder.reshape(-1), row.decoder.reshape(-1), row.rejected.reshape(-1)])
    labels = payload[row.encoder.size :][: row.decoder.size].reshape(-1, DECODER_COLUMNS)[:, LABELS]
    is_ignored = labels == IGNORE_INDEX
    labels[is_ignored] = 0
    if payload.size and (payload.min() < 0 or payload.max() >= ignored):
        raise ValueError(f"an integer of the row is outside 0..{ignored - 1}")
    labels[is_ignored] = ignored
    flags = 0 if row.members is None else HAS_MEMBERS
    members = b"" if row.members is None else row.members.astype("<u4").tobytes()
    header = HEADER.pack(
        VERSION, width, len(user), len(row.encoder), len(row.decoder), len(row.rejected), flags, row.preference_score
    )
    data = b"".join((header, payload.astype(dtype).tobytes(), user, b"\0" * (-len(user) % width), members))
    return data if row.reference is None else with_reference(data, row.reference)


def with_reference(data: bytes, logps: np.ndarray) -> bytes:
    """Stores a reference model's log-probabilities (1 + N) in a packed row, replacing any that it has.

    Raises ValueError if their number does not match the row's.
    """
    _, width, user_length, s, t, n, flags, _ = HEADER.unpack_from(data)
    if logps.shape != (1 + n,):
        raise ValueError(f"{len(logps)} log-probabilities for a row with {n} rejected items; expected {1 + n}")
    end = size_without_reference(width, user_length, s, t, n)
    flags = struct.pack("<H", flags | HAS_REFERENCE)
    return b"".join((data[:FLAGS_AT], flags, data[FLAGS_AT + 2 : end], logps.astype("<f4").tobytes()))


def extra_bytes(flags: Any, t: Any, n: Any) -> Any:
    """Bytes after `size_without_reference`. Integers, or int64 arrays (R,) of the flags and lengths of R rows."""
    return 4 * (((flags & HAS_REFERENCE) > 0) * (1 + n) + ((flags & HAS_MEMBERS) > 0) * t)


def size_without_reference(width: int, user_length: Any, s: Any, t: Any, n: Any) -> Any:
    """Size of a row in bytes without reference log-probabilities, which follow at this offset. Integers, or int64
    arrays (R,) of the lengths of R rows."""
    numbers = s * ENCODER_COLUMNS + t * DECODER_COLUMNS + n * REJECTED_COLUMNS
    return HEADER.size + numbers * width + user_length + -user_length % width


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


def batch_of(rows: Sequence[Row]) -> RowBatch:
    """Concatenates rows, at least one, as they are: int64, ignored labels -100."""
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
    user_bytes = np.fromiter(map(len, batch.users), np.int64, len(users))
    sizes = size_without_reference(
        width, user_bytes, batch.encoder_lengths, batch.decoder_lengths, batch.rejected_lengths
    )
    tails = [b""] * len(users)
    flags = 0 if batch.members is None else HAS_MEMBERS
    if batch.members is not None:
        sizes = sizes + extra_bytes(flags, batch.decoder_lengths, 0)
        tails = _row_parts(batch.members[:, None], batch.decoder_lengths)
    headers = np.zeros(len(users), SIZED_HEADER)
    headers["flags"] = flags
    headers["size"], headers["version"], headers["width"] = sizes, VERSION, width
    headers["user_bytes"] = user_bytes
    headers["encoder"], headers["decoder"] = batch.encoder_lengths, batch.decoder_lengths
    headers["rejected"], headers["score"] = batch.rejected_lengths, batch.scores
    header_parts = _row_parts(headers[:, None], np.ones(len(users), np.int64))
    return b"".join(chain.from_iterable(zip(header_parts, *parts, users, tails, strict=True))), sizes


def _row_parts(values: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """The bytes of each row's part of `values`."""
    data = values.tobytes()
    ends = (np.cumsum(lengths) * values.shape[1] * values.itemsize).tolist()
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def decode_row(data: bytes) -> Row:
    """Unpacks one row. Raises ValueError if the bytes are not a row of this version."""
    if len(data) < HEADER.size:
        raise ValueError(f"a row of {len(data)} bytes is shorter than its header ({HEADER.size} bytes)")
    version, width, user_length, s, t, n, flags, score = HEADER.unpack_from(data)
    if version != VERSION or width not in DTYPES:
        raise ValueError(f"row of codec version {version}, width {width}; this package reads version {VERSION}")
    dtype = DTYPES[width]
    sizes = (s * ENCODER_COLUMNS, t * DECODER_COLUMNS, n * REJECTED_COLUMNS)
    user_start = HEADER.size + sum(sizes) * width
    reference_start = size_without_reference(width, user_length, s, t, n)
    if len(data) != reference_start + extra_bytes(flags, t, n):
        raise ValueError(f"a row has {len(data)} bytes, but its header implies another length")
    payload = np.frombuffer(data, dtype, sum(sizes), HEADER.size).astype(np.int64)
    encoder, decoder, rejected = np.split(payload, np.cumsum(sizes)[:2])
    decoder = decoder.reshape(t, DECODER_COLUMNS)
    labels = decoder[:, LABELS]
    labels[labels == np.iinfo(dtype).max] = IGNORE_INDEX
    return Row(
        user_id=data[user_start : user_start + user_length].decode("utf-8"),
        encoder=encoder.reshape(s, ENCODER_COLUMNS),
        decoder=decoder,
        rejected=rejected.reshape(n, REJECTED_COLUMNS),
        preference_score=score,
        reference=np.frombuffer(data, "<f4", 1 + n, reference_start).copy() if flags & HAS_REFERENCE else None,
        members=np.frombuffer(data, "<u4", t, reference_start).astype(np.int64) if flags & HAS_MEMBERS else None,
    )
