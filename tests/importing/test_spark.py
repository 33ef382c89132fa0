"""The import with --engine spark on two cores of this machine: the files and messages of the local engine."""

import gzip
import random
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from convert.interactions_to_jsonl import main
from tests.spark.spark_cases import MASTER, needs_java
from ugt_composer.cli import import_table
from ugt_composer.errors import UserError
from ugt_composer.importing import order_statistics, pair_counts, spark_reader
from ugt_composer.spark.session import spark_session

pytest.importorskip("pyspark")
pytestmark = needs_java
USERS, ITEMS = 60, 40


@pytest.fixture(scope="module")
def session():
    with spark_session(MASTER, "test") as session:
        yield session


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of each file, several partitions of users, and no step that brings all times together."""
    monkeypatch.setattr(spark_reader, "SPAN_BYTES", 15_000)
    monkeypatch.setattr(spark_reader, "SPAN_ROWS", 300)
    monkeypatch.setattr(spark_reader, "PARTITION_ROWS", 350)
    monkeypatch.setattr(order_statistics, "MOST_VALUES", 50)
    monkeypatch.setattr(pair_counts, "PIECE", 17)


def events(count: int, seed: int = 1) -> list[dict]:
    """Rows of users of whom a few have most, with repeats, duplicates and equal times."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        user, item = min(int(rng.paretovariate(0.7)), USERS), min(int(rng.paretovariate(0.8)), ITEMS)
        rating = rng.choice(["", "1", "2", "3", "4", "5", "4.5"])
        action = rng.choice(["click", "Click", "view", "impression", "buy"])
        rows.append({"user": f"u{user}", "item": item, "ts": 1_500_000_000 + rng.randrange(3000), "rating": rating})
        rows[-1]["event"] = action
    return rows + [dict(row) for row in rows[5:9]]


def write_csv(path: Path, rows: list[dict], end: str = "\n") -> Path:
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    path.write_text(end.join(lines) + end, newline="")
    return path


def imported(capsys, engine: str, inputs: list[Path], options: list[str]) -> tuple[dict[str, bytes], str, str]:
    """The files, and what was printed; of an error its message and no files."""
    folder = inputs[0] if inputs[0].is_dir() else inputs[0].parent
    out = folder.parent / "out" / engine
    message = ""
    try:
        assert main([*map(str, inputs), "--out", str(out), "--engine", engine, *options]) == 0
    except UserError as error:
        message = str(error)
    printed = capsys.readouterr()
    assert message == "" or not out.exists()
    paths = [path for path in out.rglob("*") if path.is_file()] if out.exists() else []
    files = {path.relative_to(out).as_posix(): path.read_bytes().replace(str(out).encode(), b"OUT") for path in paths}
    shutil.rmtree(out, ignore_errors=True)
    assert not out.parent.exists() or not any(out.parent.iterdir()), "temporary folders"
    return files, (printed.out + printed.err).replace(str(out), "OUT"), message


def both(capsys, inputs: list[Path], *options: str) -> tuple[dict[str, bytes], str]:
    local = imported(capsys, "local", inputs, list(options))
    spark = imported(capsys, "spark", inputs, list(options))
    assert spark == local
    return spark[0], spark[1] + spark[2]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


CHOICES = ["--positive-actions", "click", "buy"]


@pytest.mark.parametrize(
    "options",
    [
        [*CHOICES, "--chosen-actions", "click", "--rejected-actions", "impression", "--pairs-per-user", "2"],
        pytest.param(
            [
                *(*CHOICES, "--history", "all", "--split", "time", "--held-out-users", "0.3"),
                *("--every-target", "--k-core", "2"),
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [
                *("--positive-actions", "all", "--repeats", "first", "--rating-gap", "1", "--cuts-per-user", "2"),
                *("--max-history", "6", "--min-rating", "2", "--clusters", "2", "3"),
            ],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_one_file_in_ranges(session, folder, capsys, options):
    files, printed = both(capsys, [write_csv(folder / "log.csv", events(900))], *options)
    assert files["train.jsonl"].count(b"\n") > 30
    assert files["train_preference.jsonl"].count(b"\n") > 10
    assert "'Click', 'click'" in printed.replace("'click', 'Click'", "'Click', 'click'") or "is read as" in printed


@pytest.mark.slow
def test_shards_of_ranges_that_span_partitions(session, folder, capsys, monkeypatch):
    make = import_table._shard_writer

    def with_small_ranges(*arguments):
        writer = make(*arguments)
        writer.settings = replace(writer.settings, range_bytes=20_000)
        return writer

    monkeypatch.setattr(import_table, "_shard_writer", with_small_ranges)
    files, printed = both(capsys, [write_csv(folder / "log.csv", events(900))], *CHOICES, "--to", "mds")
    assert "OUT/data.yaml" in printed
    assert sum(name.startswith("train/shard.") for name in files) > 5
    assert "validation/manifest.json" in files


def test_files_that_cannot_be_read_in_ranges(session, folder, capsys):
    rows = events(400)
    write_csv(folder / "a.csv", rows[:200], end="\r\n")
    quoted = write_csv(folder / "b.csv", rows[200:300])
    quoted.write_text(quoted.read_text().replace("buy", '"buy"').replace("view", '"a\nview"'))
    plain = write_csv(folder / "c.csv", rows[300:])
    (folder / "c.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    files, _ = both(capsys, [folder], *CHOICES)
    assert files["train.jsonl"]


@pytest.mark.slow
def test_json_lines_with_keys_that_come_late_and_blank_lines(session, folder, capsys):
    rows = events(300)
    lines = [f'{{"user": "{row["user"]}", "item": "{row["item"]}", "ts": {row["ts"]}}}' for row in rows]
    lines[250:] = [line[:-1] + ', "rating": 3}' for line in lines[250:]]
    lines[100] = ""
    (folder / "log.jsonl").write_text("\n".join(lines))
    files, printed = both(capsys, [folder / "log.jsonl"])
    assert "rating = 'rating'" in printed
    assert files["validation.jsonl"]


def test_parquet_of_several_types(session, folder, capsys):
    rows = pl.DataFrame(events(500)).with_columns(pl.col("rating").cast(pl.Float32, strict=False))
    rows[:300].with_columns(pl.col("item").cast(pl.Int32)).write_parquet(folder / "a.parquet", row_group_size=100)
    rows[300:].with_columns(pl.col("item").cast(pl.Float64)).write_parquet(folder / "b.parquet")
    files, _ = both(capsys, [folder], "--positive-actions", "all", "--items-column", "item")
    assert files["test.jsonl"]


@pytest.mark.parametrize(
    ("data", "said"),
    [(None, "found no interaction"), (b"", "is empty"), (b"PAR1", "cut short")],
)
def test_parquet_without_rows_or_cut_short(session, folder, capsys, data, said):
    path = folder / "events.parquet"
    pl.DataFrame(events(1)).head(0).write_parquet(path)
    path.write_bytes(path.read_bytes() if data is None else data + b"x" * 9 * len(data))
    assert said in both(capsys, [path], "--positive-actions", "all")[1]


@pytest.mark.slow
def test_ids_and_times_in_several_forms(session, folder, capsys):
    rows = events(500)
    for number, row in enumerate(rows):
        row["user"] = f" {row['user']}" if number % 7 == 0 else row["user"]
        row["item"] = f"{row['item']}.0" if number % 3 else row["item"]
        row["ts"] = f"2018-0{1 + number % 9}-1{number % 10}" if number % 5 else f"1{number % 10}.0{1 + number % 9}.2018"
    _, printed = both(capsys, [write_csv(folder / "log.csv", rows)], *CHOICES)
    assert "all ids are whole numbers" in printed
    assert "ids that differ from another only in that were taken as the same id" in printed
    assert "dates in 2 formats were read" in printed


def test_bad_rows_are_skipped_and_counted(session, folder, capsys):
    rows = events(500)
    rows[40]["ts"], rows[333]["rating"], rows[400]["user"] = "soon", "good", ""
    rows[401]["item"] = "NULL"
    rows.append({"user": "only bad", "item": "rare", "ts": "", "rating": "", "event": "click"})
    path = write_csv(folder / "log.csv", rows)
    _, printed = both(capsys, [path], *CHOICES, "--on-error", "skip")
    assert "rows skipped because they could not be parsed: 5" in printed
    _, message = both(capsys, [path], *CHOICES)
    assert "log.csv, line 42: column 'ts': found 'soon'" in message
    lines = path.read_text().split("\n")
    lines[20] += ",more"
    path.write_text("\n".join(lines))
    _, message = both(capsys, [path], *CHOICES)
    assert "log.csv, line 21: found 6 fields, expected 5" in message
    assert "(6 of 505 rows: 21, 42, 335, 402, 403 …)" in message


def test_damaged_lines_have_their_numbers(session, folder, capsys):
    path = write_csv(folder / "log.csv", events(500))
    lines = path.read_text().split("\n")
    lines[300] += ",more"
    path.write_text("\n".join(lines))
    _, message = both(capsys, [path], *CHOICES)
    assert "log.csv, line 301: found 6 fields, expected 5" in message
    _, printed = both(capsys, [path], *CHOICES, "--on-error", "skip")
    assert "log.csv, line 301" in printed
    path.write_text('{"user": 1}\n' * 700 + '["x"]\n')
    path.rename(folder / "log.jsonl")
    both(capsys, [folder / "log.jsonl"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "holds 4 different actions"),
        (["--positive-actions", "sale"], "no interaction has this action"),
        ([*CHOICES, "--k-core", "5000"], "no interaction is left"),
        ([*CHOICES, "--time-format", "%d"], "--time-format"),
        ([*CHOICES, "--split", "time", "--validation-from", "0.9", "--test-from", "0.8"], "the first must be earlier"),
        ([*CHOICES, "--held-out-users", "0.999"], "keeps all"),
    ],
)
def test_errors_have_the_same_words(session, folder, capsys, options, said):
    _, message = both(capsys, [write_csv(folder / "log.csv", events(300))], *options)
    assert said in message


@pytest.mark.slow
def test_without_times_or_with_one_the_order_is_that_of_the_file(session, folder, capsys):
    rows = events(400)
    path = write_csv(folder / "log.csv", rows)
    both(capsys, [path], *CHOICES, "--file-order")
    for row in rows:
        row["ts"] = 1_500_000_000
    _, printed = both(capsys, [write_csv(path, rows)], *CHOICES)
    assert "has the same time in all" in printed


def test_formats_of_one_machine_are_refused(session, folder):
    (folder / "seq.txt").write_text("u 1 2 3 4\n")
    with pytest.raises(UserError, match="--engine spark reads CSV, TSV, JSON Lines and Parquet"):
        main([str(folder / "seq.txt"), "--out", str(folder / "out"), "--engine", "spark"])
    with pytest.raises(UserError, match=r"--master local\[2\] is for --engine spark"):
        main([str(folder / "seq.txt"), "--out", str(folder / "out"), "--master", MASTER])
    assert not (folder / "out").exists()
