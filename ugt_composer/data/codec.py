"""One training row as bytes: the single column of an MDS shard.

Layout, version 1, little-endian:

    uint8   version (1)
    uint8   width: bytes an integer of the payload takes, 2 or 4
    uint16  U  length of user_id in bytes
    uint16  S  encoder tokens
    uint16  T  decoder tokens
    uint16  N  rejected items
    uint16  reserved (0)
    float32 preference score (1.0 where the row has none)
    uint    encoder  (S, 5): l1, l2, l3, position, token type
    uint    decoder  (T, 8): l1, l2, l3, position, token type, label l1, label l2, label l3
    uint    rejected (N, 3): l1, l2, l3
    bytes   user_id in UTF-8, padded with zero bytes to a multiple of `width`

An ignored label (-100) is stored as the largest integer of the width. Rows hold what the model sees: masked-out
positions are gone and the decoder starts with BOS, so a preference row is a decoder of length one, BOS with the
chosen item as its label, and N > 0 rejected items.
"""

import struct
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ugt_composer.vocabulary import IGNORE_INDEX

VERSION = 1
HEADER = struct.Struct("<BBHHHHHf")
SIZED_HEADER = np.dtype(  # HEADER with the size of the row in front
    [
        ("size", "<u4"),
        ("version", "u1"),
        ("width", "u1"),
        ("users", "<u2"),
        ("encoder", "<u2"),
        ("decoder", "<u2"),
        ("rejected", "<u2"),
        ("reserved", "<u2"),
        ("score", "<f4"),
    ]
)
ENCODER_COLUMNS = 5
DECODER_COLUMNS = 8
REJECTED_COLUMNS = 3
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
        preference_score: in (0, 1]; 1.0 where the row has none.
    """

    user_id: str
    encoder: np.ndarray
    decoder: np.ndarray
    rejected: np.ndarray
    preference_score: float = 1.0


def width_for(largest_id: int) -> int:
    """Bytes an integer takes when `largest_id` is the largest one stored (the all-ones value means «ignored»)."""
    return 2 if largest_id < 0xFFFF else 4


def encode_row(row: Row, width: int) -> bytes:
    """Packs one row. Raises ValueError for a user id over 65,535 bytes or an integer that does not fit."""
    dtype = DTYPES[width]
    ignored = np.iinfo(dtype).max
    user = row.user_id.encode("utf-8")
    if len(user) > 0xFFFF:
        raise ValueError(f"user_id takes {len(user)} bytes, at most 65535 fit")
    decoder = np.where(row.decoder == IGNORE_INDEX, ignored, row.decoder)
    payload = np.concatenate([row.encoder.reshape(-1), decoder.reshape(-1), row.rejected.reshape(-1)])
    if payload.size and (payload.min() < 0 or payload.max() > ignored):
        raise ValueError(f"an integer of the row is outside 0..{ignored}")
    header = HEADER.pack(
        VERSION, width, len(user), len(row.encoder), len(row.decoder), len(row.rejected), 0, row.preference_score
    )
    return b"".join((header, payload.astype(dtype).tobytes(), user, b"\0" * (-len(user) % width)))


@dataclass(frozen=True)
class RowBatch:
    """Many rows, joined: what `encode_rows` packs in one go. R rows; their tokens lie one after the other.

    Attributes:
        users: R user ids in UTF-8, each of at most 65,535 bytes.
        encoder: (ΣS, 5) of the dtype that is stored, ignored labels as its largest value; the same for the others.
        decoder: (ΣT, 8).
        rejected: (ΣN, 3).
        encoder_lengths, decoder_lengths, rejected_lengths: (R,), each at most 65,535.
        scores: (R,) preference scores.
    """

    users: list[bytes]
    encoder: np.ndarray
    decoder: np.ndarray
    rejected: np.ndarray
    encoder_lengths: np.ndarray
    decoder_lengths: np.ndarray
    rejected_lengths: np.ndarray
    scores: np.ndarray


def encode_rows(batch: RowBatch) -> tuple[bytes, np.ndarray]:
    """The bytes that `encode_row` gives for each row, at a fraction of its cost.

    Returns:
        All rows, each with its size as a uint32 in front (as MDS shards hold them), and these sizes, int64 (R,).
    """
    width = batch.encoder.itemsize
    users = [user + PADDING[-len(user) % width] for user in batch.users]
    parts = [
        _row_parts(batch.encoder, batch.encoder_lengths),
        _row_parts(batch.decoder, batch.decoder_lengths),
    ]
    if len(batch.rejected):
        parts.append(_row_parts(batch.rejected, batch.rejected_lengths))
    tokens = ENCODER_COLUMNS * batch.encoder_lengths + DECODER_COLUMNS * batch.decoder_lengths
    numbers = tokens + REJECTED_COLUMNS * batch.rejected_lengths
    sizes = HEADER.size + width * numbers + np.fromiter(map(len, users), np.int64, len(users))
    headers = np.zeros(len(users), SIZED_HEADER)
    headers["size"], headers["version"], headers["width"] = sizes, VERSION, width
    headers["users"] = [len(user) for user in batch.users]
    headers["encoder"], headers["decoder"] = batch.encoder_lengths, batch.decoder_lengths
    headers["rejected"], headers["score"] = batch.rejected_lengths, batch.scores
    header_parts = _row_parts(headers[:, None], np.ones(len(users), np.int64))
    return b"".join(chain.from_iterable(zip(header_parts, *parts, users, strict=True))), sizes


def _row_parts(values: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """The bytes of each row's part of `values`."""
    data = values.tobytes()
    ends = (np.cumsum(lengths) * values.shape[1] * values.itemsize).tolist()
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def decode_row(data: bytes) -> Row:
    """Unpacks one row. Raises ValueError where the bytes are not a row of this version."""
    if len(data) < HEADER.size:
        raise ValueError(f"a row of {len(data)} bytes is shorter than its header ({HEADER.size} bytes)")
    version, width, user_length, s, t, n, _, score = HEADER.unpack_from(data)
    if version != VERSION or width not in DTYPES:
        raise ValueError(f"row of codec version {version}, width {width}; this package reads version {VERSION}")
    dtype = DTYPES[width]
    sizes = (s * ENCODER_COLUMNS, t * DECODER_COLUMNS, n * REJECTED_COLUMNS)
    end = HEADER.size + sum(sizes) * width
    if len(data) != end + user_length + (-user_length % width):
        raise ValueError(f"a row of {len(data)} bytes, its header promises {end + user_length}")
    payload = np.frombuffer(data, dtype, sum(sizes), HEADER.size).astype(np.int64)
    encoder, decoder, rejected = np.split(payload, np.cumsum(sizes)[:2])
    decoder = decoder.reshape(t, DECODER_COLUMNS)
    decoder[decoder == np.iinfo(dtype).max] = IGNORE_INDEX
    return Row(
        user_id=data[end : end + user_length].decode("utf-8"),
        encoder=encoder.reshape(s, ENCODER_COLUMNS),
        decoder=decoder,
        rejected=rejected.reshape(n, REJECTED_COLUMNS),
        preference_score=score,
    )
