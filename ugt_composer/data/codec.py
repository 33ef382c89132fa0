"""One training row as bytes: the single column of an MDS shard.

Layout, little-endian:

    uint8   version: 2 if actions or times are stored, else 1
    uint8   width: bytes per integer of the payload, 2 or 4
    uint16  U  length of user_id in bytes
    uint16  S  encoder tokens
    uint16  T  decoder tokens
    uint16  N  rejected items
    uint16  flags, the sum of: 1 log-probabilities of a reference model are stored, 2 members, 4 actions of the history,
            8 its times, 16 the target's times
    float32 preference score (1.0 if the row has none)
    uint    encoder  (S, 5): l1, l2, l3, position, token type
    uint    decoder  (T, 8): l1, l2, l3, position, token type, label l1, label l2, label l3
    uint    rejected (N, 3): l1, l2, l3
    bytes   user_id in UTF-8, padded with zero bytes to a multiple of `width`
    uint    actions (S): what the user did with each history token, 0 = unknown; only if its flag is set
    uint32  history times (S) in seconds, the largest uint32 = unknown; only if its flag is set
    uint32  target times (T): when each label is predicted; only if its flag is set
    float32 reference (1 + N): log p of the chosen item and of each rejected one; only if its flag is set
    uint32  members (T): each label's number among the items that share its semantic ID; only if its flag is set, which
            excludes the other one

An ignored label (-100) is stored as the largest integer of the width, which nothing else may be. Rows hold what the
model sees: masked-out positions are removed and the decoder starts with BOS. A preference row has a decoder of length
one, BOS with the chosen item as its label, and N > 0 rejected items.
"""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from ugt_composer.vocabulary import IGNORE_INDEX, LARGEST_ACTION

VERSIONS = (1, 2)
HEADER = struct.Struct("<BBHHHHHf")
HAS_REFERENCE, HAS_MEMBERS, HAS_ACTIONS, HAS_TIMES, HAS_TARGET_TIMES = 1, 2, 4, 8, 16  # bits of the flags
IN_VERSION_2 = HAS_ACTIONS | HAS_TIMES | HAS_TARGET_TIMES
ALL_FLAGS = IN_VERSION_2 | HAS_REFERENCE | HAS_MEMBERS
LARGEST_MEMBER = (1 << 31) - 1
UNKNOWN_TIME = -1  # stored as the largest uint32
LARGEST_TIME = (1 << 32) - 2  # seconds: as Unix time, in the year 2106
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
ENCODER_COLUMNS = 5
DECODER_COLUMNS = 8
REJECTED_COLUMNS = 3
IDS, POSITION, TOKEN_TYPE, LABELS = slice(0, 3), 3, 4, slice(5, 8)  # columns of a token
TIME = np.dtype("<u4")
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
        encoder_actions: int64 (S,), what the user did with each history token, 0 = unknown; or None.
        encoder_times: int64 (S,) seconds, -1 = unknown; or None.
        decoder_times: int64 (T,) seconds, when each label is predicted, -1 = unknown; or None.
    """

    user_id: str
    encoder: np.ndarray
    decoder: np.ndarray
    rejected: np.ndarray
    preference_score: float = 1.0
    reference: np.ndarray | None = None
    members: np.ndarray | None = None
    encoder_actions: np.ndarray | None = None
    encoder_times: np.ndarray | None = None
    decoder_times: np.ndarray | None = None


def version_of(flags: Any) -> Any:
    """The version of a row with these flags: an integer, or an array of them."""
    return 1 + ((flags & IN_VERSION_2) > 0)


def width_for(largest_id: int) -> int:
    """Bytes per integer if `largest_id` is the largest one stored; the all-ones value means an ignored label."""
    return 2 if largest_id < 0xFFFF else 4


def encode_row(row: Row, width: int) -> bytes:
    """Packs one row. Raises ValueError for a user id over 65,535 bytes, an integer that does not fit, or a list of
    actions or times of another length than its tokens."""
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
    flags, inputs = _optional_inputs(row, dtype)
    members = b"" if row.members is None else row.members.astype("<u4").tobytes()
    lengths = len(row.encoder), len(row.decoder), len(row.rejected)
    header = HEADER.pack(version_of(flags), width, len(user), *lengths, flags, row.preference_score)
    data = b"".join((header, payload.astype(dtype).tobytes(), user, b"\0" * (-len(user) % width), *inputs, members))
    return data if row.reference is None else with_reference(data, row.reference)


def _optional_inputs(row: Row, dtype: np.dtype) -> tuple[int, list[bytes]]:
    """The flags of a row, apart from the reference's, and its actions and times as stored."""
    flags, parts = 0 if row.members is None else HAS_MEMBERS, []
    for flag, values, tokens, largest, stored in (
        (HAS_ACTIONS, row.encoder_actions, len(row.encoder), LARGEST_ACTION, dtype),
        (HAS_TIMES, row.encoder_times, len(row.encoder), LARGEST_TIME, TIME),
        (HAS_TARGET_TIMES, row.decoder_times, len(row.decoder), LARGEST_TIME, TIME),
    ):
        if values is None:
            continue
        smallest = 0 if flag == HAS_ACTIONS else UNKNOWN_TIME
        if values.shape != (tokens,) or (tokens and not smallest <= values.min() <= values.max() <= largest):
            raise ValueError(f"actions or times of the row are not {tokens} numbers in {smallest}..{largest}")
        flags |= flag
        parts.append(values.astype(stored).tobytes())
    return flags, parts


def with_reference(data: bytes, logps: np.ndarray) -> bytes:
    """Stores a reference model's log-probabilities (1 + N) in a packed row, replacing any that it has.

    Raises ValueError if their number does not match the row's.
    """
    _, width, user_length, s, t, n, flags, _ = HEADER.unpack_from(data)
    if logps.shape != (1 + n,):
        raise ValueError(f"{len(logps)} log-probabilities for a row with {n} rejected items; expected {1 + n}")
    end = size_without_reference(width, user_length, s, t, n, flags)
    flags = struct.pack("<H", flags | HAS_REFERENCE)
    return b"".join((data[:FLAGS_AT], flags, data[FLAGS_AT + 2 : end], logps.astype("<f4").tobytes()))


def extra_bytes(flags: Any, t: Any, n: Any) -> Any:
    """Bytes after `size_without_reference`. Integers, or int64 arrays (R,) of the flags and lengths of R rows."""
    return 4 * (((flags & HAS_REFERENCE) > 0) * (1 + n) + ((flags & HAS_MEMBERS) > 0) * t)


def size_without_reference(width: int, user_length: Any, s: Any, t: Any, n: Any, flags: Any) -> Any:
    """Size of a row in bytes without reference log-probabilities or members, which follow at this offset. Integers, or
    int64 arrays (R,) of the lengths and flags of R rows."""
    *_, target_times = input_starts(width, user_length, s, t, n, flags)
    return target_times + TIME.itemsize * ((flags & HAS_TARGET_TIMES) > 0) * t


def input_starts(width: int, user_length: Any, s: Any, t: Any, n: Any, flags: Any) -> tuple[Any, Any, Any]:
    """Offsets in bytes, from the start of a row, of its actions, history times and target times; those that its flags
    lack take no bytes. Integers, or int64 arrays (R,) of the lengths and flags of R rows."""
    numbers = s * ENCODER_COLUMNS + t * DECODER_COLUMNS + n * REJECTED_COLUMNS
    actions = HEADER.size + numbers * width + user_length + -user_length % width
    times = actions + width * ((flags & HAS_ACTIONS) > 0) * s
    return actions, times, times + TIME.itemsize * ((flags & HAS_TIMES) > 0) * s


def decode_row(data: bytes) -> Row:
    """Unpacks one row. Raises ValueError if the bytes are not a row of this version."""
    if len(data) < HEADER.size:
        raise ValueError(f"a row of {len(data)} bytes is shorter than its header ({HEADER.size} bytes)")
    version, width, user_length, s, t, n, flags, score = HEADER.unpack_from(data)
    if width not in DTYPES or flags > ALL_FLAGS or version != version_of(flags):
        raise ValueError(
            f"row of codec version {version}, width {width}, flags {flags}; this package reads versions "
            f"{' and '.join(map(str, VERSIONS))}"
        )
    dtype = DTYPES[width]
    sizes = (s * ENCODER_COLUMNS, t * DECODER_COLUMNS, n * REJECTED_COLUMNS)
    user_start = HEADER.size + sum(sizes) * width
    actions, times, target_times = input_starts(width, user_length, s, t, n, flags)
    reference_start = size_without_reference(width, user_length, s, t, n, flags)
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
        encoder_actions=np.frombuffer(data, dtype, s, actions).astype(np.int64) if flags & HAS_ACTIONS else None,
        encoder_times=seconds(np.frombuffer(data, TIME, s, times)) if flags & HAS_TIMES else None,
        decoder_times=seconds(np.frombuffer(data, TIME, t, target_times)) if flags & HAS_TARGET_TIMES else None,
    )


def seconds(stored: np.ndarray) -> np.ndarray:
    """int64 seconds, -1 = unknown, from the uint32 of a row."""
    values = stored.astype(np.int64)
    values[stored == np.iinfo(TIME).max] = UNKNOWN_TIME
    return values
