"""Histories are read in a stream, from the beginning of any part; the result is that of reading a file as a whole."""

import gzip
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests.shop import SIZES, shop_item, to_shards
from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.cli import history_tables
from ugt_composer.cli.histories import HistoryReader, history_settings
from ugt_composer.cli.history_files import JsonFile, history_files, read_histories
from ugt_composer.data.history import decoder_lists, encoder_lists
from ugt_composer.errors import UserError


class LinesOnly:
    """Stands for a HistoryReader: returns what it is asked to read."""

    def of_line(self, line, place, name):
        return line, place, name


def read_as_a_whole(text: bytes) -> list[tuple[bytes, int]]:
    """The objects of a file and their lines: one object, or one on each line."""
    text = text.removeprefix(b"\xef\xbb\xbf")
    lines = [(line, number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    is_one = len(lines) > 1 and not lines[0][0].strip().endswith(b"}")
    return [(b"".join(text.lstrip().splitlines(keepends=True)), 1)] if is_one else lines


LINES = st.lists(st.sampled_from([b'{"a": 1}', b"{}", b" {} ", b"", b"  ", b"\t", b'{"b":', b"1}", b"x"]), max_size=12)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(LINES, ENDS, st.booleans(), st.booleans(), st.integers(1, 5), st.sampled_from(["", ".gz", ".zst"]))
def test_a_stream_of_json_is_the_file_as_a_whole(tmp_path_factory, lines, end, has_bom, ends, users_per_part, packed):
    text = (b"\xef\xbb\xbf" if has_bom else b"") + end.join(lines) + (end if ends else b"")
    path = tmp_path_factory.getbasetemp() / f"users.jsonl{packed}"
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[packed]
    path.write_bytes(compress(text))
    file = JsonFile(str(path))
    expected = [(line.rstrip(b"\r\n"), f"{path}:{number}", f"line-{number}") for line, number in read_as_a_whole(text)]
    assert list(file.read(LinesOnly())) == expected
    scan = file.scan(users_per_part)
    assert scan.users == len(expected)
    assert len(scan.starts) == -(-scan.users // users_per_part)
    for part, start in enumerate(scan.starts):
        assert list(file.read(LinesOnly(), start)) == expected[part * users_per_part :]


@pytest.fixture
def reader(shop):
    return HistoryReader(history_settings(SIZES, 32, 5), Catalogue.load(shop / "catalogue.jsonl"), ("view", "buy"))


def same(found, expected):
    assert (found.unknown, found.earlier, found.earlier_items) == (
        expected.unknown,
        expected.earlier,
        expected.earlier_items,
    )
    assert found.own == expected.own
    for name in ("encoder", "encoder_actions", "encoder_times", "decoder_times"):
        np.testing.assert_equal(getattr(found.row, name), getattr(expected.row, name))
    assert found.row.user_id == expected.row.user_id


def users_with_everything(number: int) -> list[dict]:
    users = []
    for user in range(number):
        items = [f"item-{(user * 5 + n) % 61}" for n in range(1 + user % 8)]
        inputs = {"actions": [1 + n % 2 for n in range(len(items))], "times": [100 * n for n in range(len(items))]}
        users.append({"user_id": f"u{user}", "items": items, **(inputs | {"now": 9999} if user % 3 else {})})
        if user % 4 == 1:
            users[-1] |= {"only": ["item-1", "item-2"], "exclude": ["item-2"]}
    return users


@pytest.mark.parametrize("start", [0, 7, 20])
def test_parquet_gives_the_histories_of_json(reader, tmp_path, monkeypatch, start):
    monkeypatch.setattr(history_tables, "SLICE_ROWS", 6)
    users = users_with_everything(20)
    (tmp_path / "users.jsonl").write_text("".join(json.dumps(user) + "\n" for user in users))
    table = pl.DataFrame(users, infer_schema_length=None).with_columns(other=pl.lit(1.5))
    table.write_parquet(tmp_path / "users.parquet", row_group_size=5)
    (lines,), (rows,) = (history_files(str(tmp_path / f"users.{end}")) for end in ("jsonl", "parquet"))
    expected = list(lines.read(reader))[start:]
    found = list(rows.read(reader, (start,)))
    assert len(found) == len(expected)
    for pair in zip(found, expected, strict=True):
        same(*pair)
    assert rows.scan(8)[:2] == (20, [(0,), (8,), (16,)])


def test_ids_in_parquet_may_be_numbers(tmp_path, reader):
    catalogue = [
        {"item_id": str(n), **dict(zip(("l1_id", "l2_id", "l3_id"), shop_item(n), strict=True))} for n in (1, 2)
    ]
    (tmp_path / "catalogue.jsonl").write_text("".join(json.dumps(item) + "\n" for item in catalogue))
    reader = HistoryReader(reader.settings, Catalogue.load(tmp_path / "catalogue.jsonl"))
    pl.DataFrame({"user_id": [17], "items": [[1, 2, 3]]}).write_parquet(tmp_path / "users.parquet")
    (user,) = read_histories(str(tmp_path / "users.parquet"), reader)
    assert (user.row.user_id, user.items, user.unknown) == ("17", 2, ["3"])


def test_rows_of_shards_give_the_histories_of_their_json(reader, tmp_path):
    with (tmp_path / "recommend.jsonl").open("w") as file:
        for user in range(12):
            history, targets = ([shop_item((user + n) % 60) for n in range(length)] for length in (1 + user, 2))
            times = {"encoder_times": [100 * n for n in range(2 + user)], "decoder_times": [5000, 6000]}
            row = {"user_id": f"u{user}", **encoder_lists(history), **decoder_lists(targets)}
            file.write(json.dumps(row | (times if user % 2 else {})) + "\n")
    to_shards(tmp_path, "recommend")
    (shards,) = history_files(str(tmp_path / "recommend"))
    expected = list(JsonFile(str(tmp_path / "recommend.jsonl")).read(reader))
    found = list(shards.read(reader, (3,)))
    assert sum(user.earlier_items for user in found) > 0
    for of_shards, of_json in zip(found, expected[3:], strict=True):
        times = of_json.row.decoder_times  # of both targets; recommending needs the first
        row = replace(of_json.row, decoder_times=None if times is None else times[:1])
        same(of_shards, of_json._replace(row=row))
    assert shards.scan(5)[:2] == (12, [(0,), (5,), (10,)])


def test_a_folder_is_its_files_in_the_order_of_their_names(reader, tmp_path):
    for name in ("b.jsonl", "a.jsonl.gz", "_SUCCESS", "c.txt"):
        text = json.dumps({"user_id": name, "items": ["item-1"]}).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert [user.row.user_id for user in read_histories(str(tmp_path), reader)] == ["a.jsonl.gz", "b.jsonl"]
    pl.DataFrame({"items": [["item-1"]]}).write_parquet(tmp_path / "d.parquet")
    with pytest.raises(UserError, match=r"holds Parquet .*d\.parquet.* and JSON .*a\.jsonl\.gz.*one kind"):
        history_files(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.jsonl", None, ["none.jsonl: cannot be read", "No such file"]),
        ("none.parquet", None, ["none.parquet: no such file", "expected Parquet"]),
        ("empty.jsonl", b"\n \n", ["empty.jsonl: is empty"]),
        (
            "cut.jsonl.gz",
            gzip.compress(b'{"items": []}\n' * 9999)[:-9],
            ["cut.jsonl.gz: found a gzip stream", "cut short"],
        ),
        ("text.parquet", b"no Parquet at all", ["text.parquet: cannot be read as Parquet"]),
        ("typed.parquet", {"items": ["item-1"]}, ["the column items holds String; expected lists of text"]),
        ("named.parquet", {"history": [["item-1"]]}, ["no history: found history; expected `items`"]),
        ("close.parquet", {"items": [["item-1"]], "exlude": [["x"]]}, ["exlude is unknown; did you mean exclude?"]),
        ("null.parquet", {"items": [["item-1"], None]}, ["null.parquet, row 2: no history"]),
        ("line.jsonl", b'{"items": ["item-1"]}\n{"items": 3}', ["line.jsonl:2: items: found 3"]),
    ],
)
def test_what_cannot_be_read_is_named(reader, tmp_path, name, content, words):
    if isinstance(content, dict):
        pl.DataFrame(content).write_parquet(tmp_path / name)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read_histories(str(tmp_path / name), reader))
    assert all(word in str(error.value) for word in words), error.value


def test_a_corrupted_parquet_is_named(reader, tmp_path):
    path = tmp_path / "users.parquet"
    pl.DataFrame({"items": [[f"item-{n}" for n in range(9)]] * 500}).write_parquet(path)
    content = bytearray(path.read_bytes())
    content[100:140] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"users\.parquet: cannot be read as Parquet"):
        list(read_histories(str(path), reader))
