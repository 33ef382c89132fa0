import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
import zstandard

from ugt_composer.catalogue.catalogue import Catalogue, Item
from ugt_composer.errors import UserError

LINES = [
    {"item_id": "b", "l1_id": 5, "l2_id": 6, "l3_id": 7, "name": "Nail lacquer"},
    {"item_id": "a", "l1_id": 5, "l2_id": 6, "l3_id": 8},
    {"item_id": "c", "l1_id": 5, "l2_id": 6, "l3_id": 7, "name": None},
    {"item_id": "d", "l1_id": 9, "l2_id": 5, "l3_id": 5, "name": "Brush", "price": 3.5},
]


def write(path, rows, end="\n"):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + end for row in rows)
    path.write_bytes(text.encode("utf-8"))
    return path


def packed(path, data: bytes):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else zstandard.compress(data))
    return path


@pytest.fixture
def catalogue(tmp_path):
    return Catalogue.load(write(tmp_path / "catalogue.jsonl", LINES))


def test_items_keep_their_order_names_and_ids(catalogue):
    assert [item.item_id for item in catalogue.items] == ["b", "a", "c", "d"]
    assert [item.name for item in catalogue.items] == ["Nail lacquer", None, None, "Brush"]
    assert catalogue.triples.tolist() == [[5, 6, 7], [5, 6, 8], [5, 6, 7], [9, 5, 5]]
    assert catalogue.triples.dtype == np.int64
    assert len(catalogue) == 4
    assert catalogue.triple_of("a") == (5, 6, 8)


def test_items_that_collide_are_reported_and_both_found(catalogue):
    assert [item.item_id for item in catalogue.items_of((5, 6, 7))] == ["b", "c"]
    assert [item.item_id for item in catalogue.items_of([9, 5, 5])] == ["d"]
    assert catalogue.items_of((9, 5, 6)) == []
    assert catalogue.items_of((10, 5, 5)) == []
    assert catalogue.collisions.count == 1
    assert catalogue.collisions.items == 2
    assert catalogue.collisions.examples == [((5, 6, 7), ["b", "c"])]
    assert str(catalogue.collisions) == '2 items share 1 semantic ID: (5, 6, 7) is "b", "c"'


def test_collisions_are_counted_like_a_dictionary_does():
    triples = np.random.default_rng(0).integers(5, 10, (200, 3)).tolist()
    catalogue = Catalogue([Item(f"i{row}", *triple) for row, triple in enumerate(triples)])
    groups = {}
    for row, triple in enumerate(triples):
        groups.setdefault(tuple(triple), []).append(f"i{row}")
    shared = [(triple, ids) for triple, ids in groups.items() if len(ids) > 1]
    assert catalogue.collisions.count == len(shared)
    assert catalogue.collisions.items == sum(len(ids) for _, ids in shared)
    assert catalogue.collisions.examples == [(triple, sorted(ids)) for triple, ids in shared[:3]]
    for triple, ids in groups.items():
        assert [item.item_id for item in catalogue.items_of(triple)] == sorted(ids)


def test_an_unknown_item_names_the_nearest(catalogue):
    catalogue = Catalogue([Item(f"B00{n:07}", 5, 5, n) for n in range(5, 50_000)], "big.jsonl")
    with pytest.raises(UserError, match=r'big.jsonl has no item_id "B000012345x"; did you mean "B000012345"\?'):
        catalogue.triple_of("B000012345x")
    with pytest.raises(UserError, match='has no item_id "%%"; it has 49995 others, such as "B000000005"'):
        catalogue.triple_of("%%")


def test_ids_are_checked_against_the_codebooks(catalogue):
    catalogue.check((10, 7, 9))
    with pytest.raises(UserError, match=r"catalogue.jsonl:4: l1_id: found 9, expected at most 8"):
        catalogue.check((9, 7, 9))
    with pytest.raises(UserError, match=r"catalogue.jsonl:2: l3_id: found 8, expected at most 7"):
        catalogue.check((10, 7, 8))


def test_the_fingerprint_depends_on_ids_only_and_not_on_order(catalogue, tmp_path):
    def fingerprint(rows):
        return Catalogue.load(write(tmp_path / "other.jsonl", rows)).fingerprint

    assert len(catalogue.fingerprint) == 64
    assert fingerprint(LINES[::-1]) == catalogue.fingerprint
    assert fingerprint([{**row, "name": "new"} for row in LINES]) == catalogue.fingerprint
    assert fingerprint([*LINES[:3], {**LINES[3], "l3_id": 6}]) != catalogue.fingerprint
    assert fingerprint(LINES[:3]) != catalogue.fingerprint


def test_retired_items_are_withheld_and_change_no_fingerprint(catalogue, tmp_path):
    rows = [row | {"retired": row["item_id"] in ("a", "c")} for row in LINES]
    other = Catalogue.load(write(tmp_path / "other.jsonl", rows))
    assert other.withheld.tolist() == [False, True, True, False]
    assert other.retired == 2
    assert other.is_withheld("a")
    assert not other.is_withheld("b")
    assert other.fingerprint == catalogue.fingerprint
    assert other.triples.tolist() == catalogue.triples.tolist()
    assert other.triple_of("a") == (5, 6, 8)
    assert not catalogue.withheld.any()


def test_lists_withhold_more_than_what_is_retired(tmp_path):
    rows = [row | {"retired": row["item_id"] == "a"} for row in LINES]
    catalogue = Catalogue.load(write(tmp_path / "catalogue.jsonl", rows))
    assert catalogue.withholding(exclude={"d", "unknown"}).withheld.tolist() == [False, True, False, True]
    assert catalogue.withholding(only=["a", "b", "unknown"]).withheld.tolist() == [False, True, True, True]
    assert catalogue.withholding(["b", "c"], ["c"]).withheld.tolist() == [False, True, True, True]
    assert catalogue.withheld.tolist() == [False, True, False, False]


def test_line_ends_blank_lines_and_a_bom_do_not_matter(catalogue, tmp_path):
    path = tmp_path / "windows.jsonl"
    lines = [json.dumps(row) for row in LINES]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(["", *lines]).encode("utf-8"))
    other = Catalogue.load(path)
    assert list(other.items) == list(catalogue.items)
    with pytest.raises(UserError, match=r"windows.jsonl:9: "):
        other.check((9, 7, 9))


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.jsonl.zst"])
def test_compressed_files_are_read_and_cut_ones_refused(catalogue, tmp_path, name):
    data = "\n".join(map(json.dumps, LINES)).encode("utf-8")
    path = packed(tmp_path / name, data)
    assert list(Catalogue.load(path).items) == list(catalogue.items)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=f"{name}: found a .* cut short, expected a complete file"):
        Catalogue.load(path)
    path.write_bytes(b"not compressed")
    with pytest.raises(UserError, match=name):
        Catalogue.load(path)


GOOD = json.dumps(LINES[0])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD.replace(": 5", ": 4"), r"l1_id: found 4, expected an integer of 5 to 2147483647"),
        (GOOD.replace(": 6", ": 6.0"), r"l2_id: found 6.0, expected an integer"),
        (GOOD.replace(": 6", ': "6"'), r'l2_id: found "6", expected an integer'),
        (GOOD.replace(": 6", ": true"), r"l2_id: found true, expected an integer"),
        (GOOD.replace(": 6", ": null"), r"l2_id: found null, expected an integer"),
        (GOOD.replace(": 6", ": " + "9" * 30), r"l2_id: found 9{30}, expected an integer"),
        (GOOD.replace(": 6", ": " + "9" * 5000), r"l2_id: found .*9999.*5000 digits.*, expected an integer"),
        (GOOD.replace(": 6", ": NaN"), r"line: found NaN, which JSON does not have"),
        (GOOD.replace("l3_id", "l3id"), r'l3_id: found no such key but "l3id", expected it in every line'),
        (GOOD.replace('"b"', '""'), r'item_id: found "", expected text'),
        (GOOD.replace('"b"', "17"), r"item_id: found 17, expected text"),
        (GOOD.replace('"Nail lacquer"', "[1]"), r"name: found \[1\], expected text"),
        (GOOD[:-1] + ', "retired": 1}', r"retired: found 1, expected true or false"),
        (GOOD[:-1] + ', "retired": "true"}', r'retired: found "true", expected true or false'),
        (GOOD[:-1] + ', "retired": null}', r"retired: found null, expected true or false"),
        (GOOD[:-1] + ', "retired": true, "retired": false}', r"retired: found the key 2 times"),
        (GOOD.replace('"l2_id": 6', '"l2_id": 6, "l2_id": 7'), r"l2_id: found the key 2 times"),
        (GOOD[:-4], r"line: found"),
        (GOOD + GOOD, r"line: found"),
        ("[1, 2]", r"line: found \[1, 2\], expected a JSON object"),
        ("[" * 100_000, r"line: found brackets nested too deeply"),
        (GOOD.replace(": 6", ': 6, "more": ' + "[" * 50_000 + "]" * 50_000), r"line: found brackets nested too deeply"),
        (json.dumps({**LINES[0], "item_id": "a"}), r'item_id: found "a" a second time.*first at .*:1\)'),
    ],
)
def test_a_bad_line_is_named_with_field_found_and_expected(tmp_path, line, message):
    path = write(tmp_path / "c.jsonl", [LINES[1], "", line, LINES[3]])
    with pytest.raises(UserError, match=r"c.jsonl:3: " + message):
        Catalogue.load(path)


def test_invalid_catalogues_are_refused(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(GOOD.replace("Nail", "N\xe4gel").encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.jsonl:1: line: found byte 0xe4.*expected text in UTF-8"):
        Catalogue.load(tmp_path / "latin.jsonl")
    with pytest.raises(UserError, match="found no item, expected at least one line"):
        Catalogue.load(write(tmp_path / "empty.jsonl", ["", "  "]))
    with pytest.raises(UserError, match="found no such file"):
        Catalogue.load(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="found no such file"):
        Catalogue.load(tmp_path)
    (tmp_path / "long.jsonl").write_bytes(b"x" * 5_000_000)
    with pytest.raises(UserError, match="found a line of 5000000 bytes"):
        Catalogue.load(tmp_path / "long.jsonl")


def test_reading_a_catalogue_does_not_import_torch():
    code = "import sys, ugt_composer.catalogue.catalogue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("item_id", "alike"), [("1.0", "1"), ("0010", "10"), (" 10 ", "10"), ("B7", "b7"), ("2", None)]
)
def test_an_id_that_is_only_written_differently_is_found(item_id, alike):
    catalogue = Catalogue([Item(name, 5, 5, 5 + n) for n, name in enumerate(("1", "10", "b7"))])
    assert catalogue.alike(item_id) == alike
    with pytest.raises(UserError, match="did you mean" if alike else "it has 3 others"):
        catalogue.triple_of(item_id)
