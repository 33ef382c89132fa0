"""Reads lists of integers from JSON text into NumPy columns, for many rows and several keys at once.

A column holds the values of one key for R rows. Each row's values are followed by one extra slot, so that a column of
n values is an array of n + R slots. The columns of one side (encoder, decoder) share the
extra slots.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import numpy as np

RawLists = Sequence[msgspec.Raw | bytes]

END = -1  # in the extra slots; never a value: ids, positions, types and masks are >= 0, labels >= 0 or -100
LARGEST_EXACT = 2.0**53  # integers below it are exact as floats
END_BYTE, BAD_BYTE = 255, 254
BLANKS = b" \t\r\n"

_DIGIT_TABLE = bytes(
    byte - ord("0") if chr(byte).isdecimal() and byte < 128 else END_BYTE if byte == ord("]") else BAD_BYTE
    for byte in range(256)
)
_STARTS_NUMBER = np.array([chr(byte) in "-0123456789" for byte in range(256)])


class IrregularRows(Exception):
    """These rows must be converted one by one: there is an error among them, or a valid but rare form."""


@contextmanager
def strict_numbers() -> Iterator[None]:
    """Makes NumPy raise for text that is not a number, instead of warning and returning the values before it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        yield


def read_integers(columns: Sequence[RawLists]) -> np.ndarray:
    """Reads C columns of integers that may be large or negative.

    Each text is JSON, as msgspec has checked. Raises IrregularRows unless it is one flat list of plain integers.

    Returns:
        int64 (C, n + R), with END in the extra slots.
    """
    return _by_column(_numbers(columns, np.int64), END, columns)


def read_seconds(columns: Sequence[RawLists]) -> np.ndarray:
    """Reads C columns of integers or floats, rounded down. Raises IrregularRows unless all are below 2**53.

    Returns:
        int64 (C, n + R), with END in the extra slots.
    """
    try:
        return read_integers(columns)
    except IrregularRows:  # has a float, or is wrong
        values = np.floor(_numbers(columns, np.float64))
    if not np.abs(values).max(initial=0) < LARGEST_EXACT:
        raise IrregularRows
    return _by_column(values.astype(np.int64), END, columns)


def _numbers(columns: Sequence[RawLists], dtype: type) -> np.ndarray:
    """The numbers of all lists, each list followed by END."""
    lists = [text for column in columns for text in column]
    text = b",".join(lists)
    buffer = np.frombuffer(text, np.uint8)
    opens = np.flatnonzero(buffer == ord("["))
    if len(opens) != len(lists):  # a nested list, or not a list
        raise IrregularRows
    if not _STARTS_NUMBER[buffer[opens + 1]].all():  # NumPy would read the blank in `[ ]` as a zero
        text = text.translate(None, BLANKS)
    try:
        return np.fromstring(text.replace(b"[", b"").replace(b"]", b",%d" % END), dtype, sep=",")
    except (DeprecationWarning, ValueError):
        raise IrregularRows from None


def read_digits(columns: Sequence[RawLists]) -> np.ndarray:
    """Reads C columns of integers from 0 to 9, ten times faster than `read_integers`. The last may be booleans.

    Returns:
        uint8 (C, n + R), with END_BYTE in the extra slots.
    """
    text, last = b"".join([text for column in columns[:-1] for text in column]), b"".join(columns[-1])
    if b"e" in last:
        last = last.replace(b"true", b"1").replace(b"false", b"0")
    text += last
    lists = sum(map(len, columns))
    values = np.frombuffer(text.translate(_DIGIT_TABLE, b"[," + BLANKS), np.uint8)
    # As many digits as values (the commas, and one more per list) means that each value has exactly one digit.
    digits = len(values) - lists
    flat = count_byte(text, b"[") == lists
    if not flat or digits != count_byte(text, b",") + lists or (values == BAD_BYTE).any():
        raise IrregularRows
    return _by_column(values.copy(), END_BYTE, columns)


def count_byte(text: bytes, byte: bytes) -> int:
    """`text.count(byte)`, faster where there are many."""
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord(byte)))


def _by_column(values: np.ndarray, end: int, columns: Sequence[RawLists]) -> np.ndarray:
    """(C, n + R). All columns must have their ends at the same places, one per row, and no row may be empty."""
    if len(values) % len(columns):
        raise IrregularRows
    table = values.reshape(len(columns), -1)
    is_end = table == end
    ends = np.flatnonzero(is_end[0])
    rows = len(columns[0])
    if (
        len(ends) != rows
        or ends[-1] != table.shape[1] - 1
        or np.diff(ends, prepend=-1).min() < 2
        or (is_end[1:] != is_end[0]).any()
    ):
        raise IrregularRows
    return table
