"""Lists parsed by NumPy equal those that json parses, or are left to the slow path."""

import itertools
import json

import msgspec
import pytest

from ugt_composer.conversion.columns import (
    END,
    END_BYTE,
    IrregularRows,
    read_digits,
    read_integers,
    strict_numbers,
)


class Holder(msgspec.Struct):
    a: msgspec.Raw


def raw_texts(length: int):
    """Every array text of up to `length` allowed characters between its brackets, with the result of json."""
    decoder = msgspec.json.Decoder(Holder)
    for size in range(length + 1):
        for characters in itertools.product('[],- 019.e\t"{:', repeat=size):
            text = "[" + "".join(characters) + "]"
            try:
                raw = decoder.decode(f'{{"a":{text}}}'.encode()).a
            except msgspec.DecodeError:
                continue
            yield raw, json.loads(text)


def read(reader, columns):
    try:
        return reader(columns).tolist()
    except IrregularRows:
        return None


def test_every_short_list_is_read_as_json_reads_it_or_not_at_all():
    taken = 0
    with strict_numbers():
        for raw, values in raw_texts(4):
            integers = bool(values) and all(type(value) is int for value in values)
            if END not in values:
                assert read(read_integers, [[raw]]) == ([[*values, END]] if integers else None)
            digits = integers and all(0 <= value < 10 for value in values) and b"-" not in bytes(raw)
            assert read(read_digits, [[raw]]) == ([[*values, END_BYTE]] if digits else None)
            taken += integers
    assert taken > 100


def raws(*texts: str) -> list[msgspec.Raw]:
    return [msgspec.Raw(text) for text in texts]


def test_columns_of_one_side_share_their_ends():
    with strict_numbers():
        assert read(read_integers, [raws("[1, 20]", "[3]"), raws("[4, 5]", "[ 6 ]")]) == [
            [1, 20, END, 3, END],
            [4, 5, END, 6, END],
        ]
        assert read(read_digits, [raws("[1]", "[0,1]"), raws("[true]", "[false, 1]")]) == [
            [1, END_BYTE, 0, 1, END_BYTE],
            [1, END_BYTE, 0, 1, END_BYTE],
        ]


@pytest.mark.parametrize(
    "columns",
    [
        [raws("[1, 2]", "[3]"), raws("[4]", "[5, 6]")],
        [raws("[1, 2]", "[3]"), raws("[4, 5]", "[6, 7]")],
        [raws("[1, -1]", "[3]"), raws("[4, 5]", "[6]")],
        [raws("[12, 1]"), raws("[1, 1, 1]")],
        [raws("[1]", "[]"), raws("[1]", "[]")],
    ],
)
def test_columns_of_different_lengths_are_not_taken(columns):
    with strict_numbers():
        assert read(read_integers, columns) is None
        assert read(read_digits, columns) is None
