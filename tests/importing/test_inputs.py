from pathlib import Path

import polars as pl
import pytest

from ugt_composer.errors import UserError
from ugt_composer.importing.file_format import FileFormat
from ugt_composer.importing.inputs import find_parts
from ugt_composer.importing.interactions import read_interactions
from ugt_composer.importing.items import read_items

ROWS = {"user": ["u1", "u2"], "item": ["b", "a"], "timestamp": [2, 1]}


def parts(folder: Path, suffix: str = ".csv") -> Path:
    for number, name in enumerate(["part-1", "part-0", "sub/part-2"]):
        path = folder / "parts" / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pl.DataFrame({**ROWS, "item": [f"{name[-1]}b", f"{name[-1]}a"], "timestamp": [number, number]})
        if suffix == ".parquet":
            table.write_parquet(path)
        elif suffix == ".jsonl":
            table.write_ndjson(path)
        elif suffix == ".txt":
            path.write_text("".join(f"{user}{name[-1]} {item}\n" for user, item, _ in table.iter_rows()))
        else:
            table.write_csv(path)
    for name in ("_SUCCESS", ".part-0.csv.crc", "_temporary/part.csv"):
        (folder / "parts" / name).parent.mkdir(exist_ok=True)
        (folder / "parts" / name).write_text("no table")
    return folder / "parts"


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl", ".txt"])
def test_a_folder_is_read_in_the_order_of_its_names(tmp_path, suffix):
    log = read_interactions(parts(tmp_path, suffix), file_order=True)
    first = log.item[log.user == 0] if suffix != ".txt" else log.item[: len(log) // 2]
    assert log.items[first].to_list() == ["0b", "1b", "2b"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_files_and_patterns_are_read_as_one_table(tmp_path, kind):
    folder = parts(tmp_path, f".{kind}")
    files = [folder / f"part-0.{kind}", folder / "sub" / "*"]
    assert len(read_interactions(files)) == 4
    assert len(read_interactions(folder / "*.*")) == 4
    assert len(read_interactions(folder / "**" / f"part-?.{kind}")) == 6


def test_the_parts_own_line_is_named(tmp_path):
    folder = parts(tmp_path)
    for text, said in (
        ("u,i,x\n", "column 'timestamp': found 'x'"),
        ("u\n", "found 1 field"),
        (",i,3\n", "column 'user': found nothing"),
    ):
        path = folder / "sub/part-2.csv"
        path.write_text("user,item,timestamp\nu,i,1\n" + text)
        with pytest.raises(UserError) as error:
            read_interactions(folder)
        assert f"{path}, line 3: {said}" in str(error.value)


def test_damaged_lines_of_several_files_are_listed_with_their_files(tmp_path):
    folder = parts(tmp_path)
    for name in ("part-0.csv", "sub/part-2.csv"):
        with (folder / name).open("a") as file:
            file.write("u\n")
    with pytest.raises(UserError, match=r"\(2 of 8 rows: part-0\.csv:4, part-2\.csv:4\)"):
        read_interactions(folder)


def test_items_of_several_files_are_read_and_their_own_lines_named(tmp_path):
    (tmp_path / "a.csv").write_text("item,title\n1,one\n2,two\n")
    (tmp_path / "b.csv").write_text("item,title\n3,three\n")
    assert read_items(tmp_path / "*.csv").names.to_list() == ["one", "two", "three"]
    (tmp_path / "b.csv").write_text("item,title\n3,three\n1,other\n")
    with pytest.raises(UserError, match=r"a\.csv, line 2, and .*b\.csv, line 3: item '1' occurs 2 times"):
        read_items(tmp_path / "*.csv")
    (tmp_path / "b.csv").write_text("item,title\n3,three\n,other\n")
    with pytest.raises(UserError, match=r"b\.csv, line 3: column 'item': found nothing"):
        read_items(tmp_path / "*.csv")


def test_parts_of_different_columns_kinds_or_types_are_refused_with_both_names(tmp_path):
    folder = parts(tmp_path)
    other = folder / "part-2.csv"
    for text, said in (
        (
            "user,item,when\n",
            r"part-2\.csv has the columns user, item, when, but .*part-0\.csv has user, item, timestamp",
        ),
        ("item,user,timestamp\n", r"part-2\.csv has its columns in another order than .*part-0\.csv"),
    ):
        other.write_text(text)
        with pytest.raises(UserError, match=said):
            read_interactions(folder)
    other.rename(folder / "notes.txt")
    with pytest.raises(UserError, match=r"notes\.txt is read as sequences, but .*part-0\.csv as csv"):
        read_interactions(folder)
    pl.DataFrame(ROWS).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame(ROWS).with_columns(pl.col("timestamp").cast(pl.String)).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet: column 'timestamp' holds text, but integers in .*a\.parquet"):
        read_interactions(tmp_path / "*.parquet")


def test_numbers_of_different_types_in_parquet_are_one_column(tmp_path):
    pl.DataFrame(ROWS).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame(ROWS).with_columns(pl.col("timestamp").cast(pl.Float64) + 0.5).write_parquet(tmp_path / "b.parquet")
    assert sorted(read_interactions(tmp_path / "*.parquet").time.tolist()) == [1, 1.5, 2, 2.5]


def test_numbers_of_different_types_in_parquet_keep_their_values(tmp_path):
    table = pl.DataFrame({"user": [1, 2], "item": [3, 4], "rating": [4, 5], "timestamp": [1, 2]})
    table.write_parquet(tmp_path / "a.parquet")
    large = pl.Series("user", [2**63, 2**63 + 1], pl.UInt64)
    halves = pl.Series("rating", ["4.5", "3.5"]).str.to_decimal(scale=1)
    table.with_columns(large, halves).write_parquet(tmp_path / "b.parquet")
    read = read_interactions(tmp_path / "*.parquet")
    assert sorted(read.rating.tolist()) == [3.5, 4, 4.5, 5]
    assert set(read.users) == {"1", "2", str(2**63), str(2**63 + 1)}


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (["none.csv"], "none.csv: found no such file or folder"),
        (["*.none"], "*.none: found no file that matches this pattern"),
        (["empty"], "empty: found no file in this folder, expected a table (.csv"),
        (["odd"], "odd: found only files such as a.bin in this folder"),
        (["a.csv", "*.csv"], "a.csv: given twice"),
        (["a.zip"], "a.zip: is packed as zip; unpack it"),
        (
            ["gs://bucket/r.csv"],
            "is an address, of which only s3://… is read; copy the file to this machine and give its path",
        ),
    ],
)
def test_inputs_that_are_no_tables_are_refused(tmp_path, monkeypatch, inputs, said):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "odd"):
        Path(folder).mkdir()
    for name in ("a.csv", "a.zip", "odd/a.bin"):
        Path(name).write_text("x")
    with pytest.raises(UserError) as error:
        find_parts([Path(name) for name in inputs], FileFormat())
    assert said in str(error.value)


def test_a_file_whose_name_looks_like_a_pattern_is_read(tmp_path):
    (tmp_path / "r[1].csv").write_text("user,item,timestamp\nu,i,1\n")
    assert len(read_interactions(tmp_path / "r[1].csv")) == 1
