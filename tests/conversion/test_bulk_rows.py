"""Rows parsed in bulk equal rows parsed one by one, for any text."""

import json
import random

import pytest

from tests.conversion.conversion_cases import SMALL, contents, main, preference_row, recommend_row
from ugt_composer.conversion import partition
from ugt_composer.errors import UserError

ODD_TEXTS = [
    b"-0",
    b"01",
    b"1.0",
    b"1e0",
    b"true",
    b"false",
    b"null",
    b"[]",
    b"[1]",
    b"{}",
    b'"1"',
    b"NaN",
    b"-1",
    b"-100",
    b"99999999999999999999",
    b"\\",
    b'\\"',
    b"\\u0022",
    b"\xff",
    b"\xc3\xa9",
    b"\t",
    b"\x0b",
    b"\0",
    b"",
    b",",
    b" ",
    b"  ",
    b"+1",
    b'"',
    b"]",
    b"}",
    b"\r",
    b'"x":1,',
    b'"user_id":"again",',
    b'"note":"\xc3\xa9","tags":["a","b"],',
]

EDITED_INTEGERS = [0, 1, 2, 3, 4, 5, 11, 12, 15, 16, 39, 40, 41, -1, -100, 1 << 31, 1 << 70]
EDITED_TEXTS = ["", "a", '"', "é"]


def edited_text(rng: random.Random, text: bytes) -> bytes:
    """Replaces a byte range of a line by something that a JSON writer may get wrong."""
    for _ in range(rng.choice([1, 1, 1, 2])):
        start = rng.randrange(len(text))
        text = text[:start] + rng.choice(ODD_TEXTS) + text[start + rng.choice([0, 0, 1, 2, 5]) :]
    return text.replace(b"\n", b" ")


def edited_row(rng: random.Random, row: dict) -> dict:
    """Changes a value inside the row; the result is sometimes valid."""
    holder = row
    while True:
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        if not isinstance(holder[key], dict | list) or not holder[key] or rng.random() < 0.1:
            break
        holder = holder[key]
    holder[key] = rng.choice(
        [*EDITED_INTEGERS, 1.0, 0.5, 1e-50, True, False, None, *EDITED_TEXTS, [], [[1]], {}, {"a": 1}]
    )
    return row


def random_lines(rng: random.Random, kind: str, rows: int) -> list[bytes]:
    """Mostly good rows, some with unknown keys, some edited."""
    lines = []
    for number in range(rows):
        make = recommend_row if kind == "recommend" else preference_row
        row = make(rng, f"user {number}", rng.randint(1, 9), rng.randint(1, 6))
        if rng.random() < 0.3:
            row["category"] = rng.choice(["a", 1, None, ["b", "c"], {"d": {"e": "f"}}, "é", 'say "x"'])
        if kind == "preference" and rng.random() < 0.3:
            row["chosen_item"]["name"] = "x"
            row["rejected_items"][0]["name"] = "y"
        if kind == "preference" and rng.random() < 0.3:
            row["rejected_item"] = row.pop("rejected_items")
        if rng.random() < 0.3:
            holder = row.get("user_sequence", row)
            holder["encoder_mask"] = [rng.choice([0, 1, True, False]) for _ in holder["encoder_mask"]]
        if rng.random() < 0.15:
            row = edited_row(rng, row)
        line = json.dumps(row, ensure_ascii=rng.random() < 0.5).encode()
        lines.append(edited_text(rng, line) if rng.random() < 0.15 else line)
    return lines


@pytest.mark.parametrize("kind", ["recommend", "preference"])
@pytest.mark.parametrize("seed", range(15))
def test_bulk_and_single_rows_give_the_same_files(tmp_path, monkeypatch, kind, seed):
    rng = random.Random(f"{kind} {seed}")
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b"\n".join(random_lines(rng, kind, 120)))
    options = [str(source), "--kind", kind, "--on-error", "quarantine", "--max-error-rate", "1", *SMALL]
    assert main([*options, "--out", str(tmp_path / "bulk")]) == 0
    monkeypatch.setattr(partition, "FEWEST_BULK_ROWS", 1 << 30)
    assert main([*options, "--out", str(tmp_path / "single")]) == 0
    bulk, single = contents(tmp_path / "bulk"), contents(tmp_path / "single")
    assert bulk.keys() == single.keys()
    assert bulk == single
    assert json.loads(bulk["manifest.json"])["counts"]["bad_rows"] > 0


@pytest.mark.parametrize("kind", ["recommend", "preference"])
def test_bulk_and_single_reading_agree_on_edited_lines(tmp_path, monkeypatch, kind):
    """Many files, each with one edited line among good ones, are read in bulk and row by row."""
    rng = random.Random(kind)
    source = tmp_path / "rows.jsonl"
    make = recommend_row if kind == "recommend" else preference_row
    good = [json.dumps(make(rng, f"u{at}")).encode() for at in range(8)]
    options = [str(source), "--kind", kind, "--overwrite", "--out", str(tmp_path / "out"), *SMALL]

    def verdict(fewest: int) -> object:
        monkeypatch.setattr(partition, "FEWEST_BULK_ROWS", fewest)
        try:
            main(options)
        except UserError as error:
            return str(error)
        return contents(tmp_path / "out")

    accepted = 0
    for _ in range(250):
        lines = [*good]
        at = rng.randrange(len(lines))
        lines[at] = edited_text(rng, lines[at])
        source.write_bytes(b"\n".join(lines))
        bulk, single = verdict(2), verdict(1 << 30)
        assert bulk == single, lines[at]
        accepted += not isinstance(bulk, str)
    assert 0 < accepted < 200


def test_most_rows_are_taken_in_bulk(tmp_path, monkeypatch, capsys):
    """A bad row or an unknown key must not make its neighbours take the slow path."""
    rng = random.Random(0)
    rows = [recommend_row(rng, f"u{at}") | {"source": "web", "when": at} for at in range(2000)]
    lines = [json.dumps(row).encode() for row in rows]
    lines[700] = lines[700].replace(b"[", b"(", 1)
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b"\n".join(lines))
    singly = []
    check_row = partition.check_row
    monkeypatch.setattr(partition, "check_row", lambda line, settings: singly.append(line) or check_row(line, settings))
    arguments = [str(source), "--kind", "recommend", "--out", str(tmp_path / "out"), *SMALL]
    assert main([*arguments, "--on-error", "quarantine"]) == 0
    assert len(singly) < 30
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]
    assert counts["ignored_keys"] == {"source": 1999, "when": 1999}
    printed = capsys.readouterr().out
    assert "1,999  rows with the unknown key source, ignored" in printed


def test_unknown_keys_of_rejected_items_are_counted_by_row(tmp_path, monkeypatch):
    rng = random.Random(0)
    rows = [preference_row(rng, f"u{at}") for at in range(40)]
    for row in rows:
        item = row.pop("rejected_item", None) or row["rejected_items"][0]
        row["rejected_items"] = [{**item, "name": "a"}, {**item, "name": "b"}]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for fewest in (2, 1 << 30):
        monkeypatch.setattr(partition, "FEWEST_BULK_ROWS", fewest)
        assert main([str(source), "--kind", "preference", "--overwrite", "--out", str(tmp_path / "out"), *SMALL]) == 0
        counts = json.loads((tmp_path / "out/manifest.json").read_text())["counts"]
        assert counts["ignored_keys"] == {"rejected_items.name": 40}
