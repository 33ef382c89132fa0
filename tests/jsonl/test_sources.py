"""Files, folders, compressed files, byte ranges and workers always give the same rows in the same order."""

import gzip
import json
import os
import random
import zlib

import pytest
import zstandard

from tests.conversion.conversion_cases import SMALL, contents, decoded_rows, main, recommend_row, siblings, write_rows
from ugt_composer.errors import UserError

RECOMMEND = ["--kind", "recommend", *SMALL]


def some_rows(count: int, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    return [recommend_row(rng, f"user {seed} {at}", rng.randint(1, 8)) for at in range(count)]


def text_of(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def users(folder) -> list[str]:
    return [row.user_id for row in decoded_rows(folder)]


def convert(tmp_path, inputs, *options: str):
    out = tmp_path / "out"
    assert main([*map(str, inputs), "--out", str(out), *RECOMMEND, *options]) == 0
    return out


def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    """With bad and blank lines, several files, one of them compressed, and ranges much smaller than the files."""
    rng = random.Random(1)
    lines = text_of(some_rows(150)).split(b"\n")
    for _ in range(12):
        at = rng.randrange(len(lines))
        lines[at] = rng.choice([b"", b"\r", lines[at].replace(b"[", b"[99, ", 1), lines[at][:100], b"\xff"])
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text_of(some_rows(60, 1))))
    (tmp_path / "c.jsonl").write_bytes(text_of(some_rows(3, 2)))
    (tmp_path / "d.jsonl").write_bytes(text_of(some_rows(40, 3)).rstrip())
    options = ["--on-error", "quarantine", "--max-error-rate", "0.5", "--range-bytes", "7000"]
    inputs = [str(path) for path in sorted(tmp_path.glob("?.jsonl*"))]
    results = []
    for workers in ("1", "2", "3"):
        out = tmp_path / f"out{workers}"
        assert main([*inputs, "--out", str(out), "--workers", workers, *RECOMMEND, *options]) == 0
        results.append(contents(out))
    assert results[0] == results[1] == results[2]
    for entry in map(json.loads, results[0]["quarantine.jsonl"].splitlines()):
        assert lines[entry["line"] - 1].startswith(entry.get("raw", "").encode()[:20])
    assert len(results[0]["quarantine.jsonl"].splitlines()) > 5


@pytest.mark.parametrize("range_bytes", [50, 999, 1000, 5000])
def test_every_line_belongs_to_one_range(tmp_path, range_bytes):
    rows = some_rows(12)
    source = tmp_path / "rows.jsonl"
    source.write_bytes(text_of(rows[:6]) + b"\n\r\n" + text_of(rows[6:]).rstrip())
    out = convert(tmp_path, [source], "--range-bytes", str(range_bytes))
    assert users(out) == [row["user_id"] for row in rows]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["input"]["lines"] == 14
    assert manifest["counts"]["blank_lines"] == 2


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_first_bad_row_in_input_order_is_named(tmp_path, workers):
    lines = text_of(some_rows(100)).split(b"\n")
    lines[70] = lines[90] = b"{"
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b"\n".join(lines))
    arguments = [str(source), "--out", str(tmp_path / "out"), "--workers", workers, "--range-bytes", "3000"]
    with pytest.raises(UserError, match=r"rows\.jsonl:71: line: "):
        main([*arguments, *RECOMMEND])
    assert not (tmp_path / "out").exists()
    assert siblings(tmp_path / "out") == []


def test_a_folder_gives_all_its_files_in_order(tmp_path):
    folder = tmp_path / "data"
    for name in ("day=2/b.jsonl", "day=10/a.ndjson", "c.json", "_tmp/x.jsonl", ".hidden.jsonl", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text_of([recommend_row(random.Random(0), name)]))
    assert users(convert(tmp_path, [folder])) == ["c.json", "day=10/a.ndjson", "day=2/b.jsonl"]


def test_crlf_bom_and_blank_lines_are_no_mistakes(tmp_path):
    rows = some_rows(20)
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b"\xef\xbb\xbf" + text_of(rows).replace(b"\n", b"\r\n") + b"  \r\n\n")
    assert users(convert(tmp_path, [source])) == [row["user_id"] for row in rows]


def packed(data: bytes, ending: str) -> bytes:
    if ending == "gz":
        return gzip.compress(data)
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_compressed_files_of_several_members_are_read_to_the_end(tmp_path, ending):
    first, second = some_rows(200, 1), some_rows(30, 2)
    source = tmp_path / f"rows.jsonl.{ending}"
    source.write_bytes(packed(text_of(first), ending) + packed(text_of(second), ending))
    assert users(convert(tmp_path, [source])) == [row["user_id"] for row in first + second]


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("cut", [1, 5, 200])
def test_a_truncated_compressed_file_is_an_error(tmp_path, ending, cut):
    source = tmp_path / f"rows.jsonl.{ending}"
    source.write_bytes(packed(text_of(some_rows(300)), ending)[:-cut])
    with pytest.raises(UserError, match=rf"{ending}:\d+: line: found a .* stream that is cut short"):
        convert(tmp_path, [source])
    assert siblings(tmp_path / "out") == []
    out = convert(tmp_path, [source], "--on-error", "quarantine")
    (entry,) = map(json.loads, (out / "quarantine.jsonl").read_text().splitlines())
    assert entry["line"] == len(users(out)) + 1


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("on_error", ["fail", "quarantine"])
def test_no_row_of_a_corrupted_compressed_file_is_used(tmp_path, ending, on_error):
    source = tmp_path / f"rows.jsonl.{ending}"
    data = bytearray(packed(text_of(some_rows(300)), ending))
    data[len(data) // 2] ^= 0x55
    source.write_bytes(data)
    with pytest.raises(UserError, match=r"rows\.jsonl\.\w+:.*(corrupted|line)"):
        convert(tmp_path, [source], "--on-error", on_error)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_compressed_is_reported(tmp_path):
    source = tmp_path / "rows.jsonl.gz"
    source.write_bytes(text_of(some_rows(2)))
    with pytest.raises(UserError, match="corrupted gzip stream"):
        convert(tmp_path, [source])
    source.write_bytes(zlib.compress(b"{}"))
    with pytest.raises(UserError, match="corrupted gzip stream"):
        convert(tmp_path, [source])


def test_lines_longer_than_allowed_are_bad_rows(tmp_path, monkeypatch):
    """Also lines longer than a block, of which only the beginning is ever in memory."""
    from ugt_composer.jsonl import lines

    monkeypatch.setattr(lines, "BLOCK_BYTES", 3000)
    rows = some_rows(30)
    rows[4]["note"] = "x" * 2000
    rows[9]["note"] = "x" * 20_000
    rows[29]["note"] = "x" * 50_000
    source = write_rows(tmp_path / "rows.jsonl", rows)
    out = convert(tmp_path, [source], "--on-error", "quarantine", "--max-error-rate", "1", "--max-line-bytes", "1500")
    entries = [json.loads(text) for text in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in entries] == [5, 10, 30]
    sizes = [len(json.dumps(rows[at])) for at in (4, 9, 29)]
    assert [f"found {size} bytes" in entry["reason"] for entry, size in zip(entries, sizes, strict=True)] == [True] * 3
    assert len(users(out)) == 27


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["missing.jsonl"], "no such file or folder"),
        (["rows.csv"], "must end in one of"),
        (["empty"], "no file in this folder"),
        (["broken"], "gone.jsonl: is a link to nowhere, which does not exist"),
        (["pipe.jsonl"], "not a regular file"),
        (["rows.jsonl", "rows.jsonl"], "given twice"),
        (["rows.jsonl", "link.jsonl"], "given twice"),
        (["blank.jsonl"], "no rows in the input"),
        (["nothing.jsonl"], "no rows in the input"),
    ],
)
def test_nonsensical_input_is_refused(tmp_path, inputs, message):
    write_rows(tmp_path / "rows.jsonl", some_rows(2))
    write_rows(tmp_path / "rows.csv", some_rows(2))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "rows.jsonl")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "nothing.jsonl").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "gone.jsonl").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match=message):
        convert(tmp_path, [tmp_path / name for name in inputs])
    assert siblings(tmp_path / "out") == []


def test_input_and_output_must_not_lie_in_each_other(tmp_path):
    write_rows(tmp_path / "rows.jsonl", some_rows(2))
    with pytest.raises(UserError, match="lies inside the input folder"):
        main([str(tmp_path), "--out", str(tmp_path / "out"), *RECOMMEND])
    with pytest.raises(UserError, match="lies inside --out"):
        main([str(tmp_path / "rows.jsonl"), "--out", str(tmp_path), "--overwrite", *RECOMMEND])


def test_the_manifest_identifies_the_input_by_its_content(tmp_path):
    rows = some_rows(10)
    prints = []
    for folder, changed in (("a", rows), ("b", rows), ("c", rows[:9])):
        (tmp_path / folder).mkdir()
        source = write_rows(tmp_path / folder / "rows.jsonl", changed)
        out = tmp_path / folder / "out"
        assert main([str(source), "--out", str(out), *RECOMMEND]) == 0
        assert str(tmp_path) not in (out / "manifest.json").read_text() + (out / "index.json").read_text()
        prints.append(json.loads((out / "manifest.json").read_text())["input"]["fingerprint"])
    assert prints[0] == prints[1] != prints[2]
