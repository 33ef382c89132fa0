"""Tables in S3: the files and messages of an import of the same files in folders, apart from their addresses."""

import gzip
import random
import shutil
from pathlib import Path

import polars as pl
import pytest
import zstandard

from convert.interactions_to_jsonl import main
from tests.spark.spark_cases import MASTER, needs_java
from tests.storage.s3_server import executor_environment, upload
from ugt_composer.errors import UserError
from ugt_composer.importing import spark_reader
from ugt_composer.storage.remote_files import RemoteFile
from ugt_composer.storage.s3 import Store

pytestmark = pytest.mark.processes
IN = "s3://bucket/in"
OPTIONS = ["--cuts-per-user", "3", "--clusters", "2", "3"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def table(count: int, seed: int = 1) -> pl.DataFrame:
    rng = random.Random(seed)
    return pl.DataFrame(
        {
            "user": [f"u{rng.randrange(20)}" for _ in range(count)],
            "item": [rng.randrange(30) for _ in range(count)],
            "ts": [1_500_000_000 + rng.randrange(9000) for _ in range(count)],
            "rating": [rng.randrange(1, 6) for _ in range(count)],
            "note": ['a, "b"\nc' if at == 40 else "" for at in range(count)],
        }
    )


def imported(capsys, out: Path, inputs: list[str], options: list[str]) -> tuple[dict[str, bytes], str]:
    """The files, and what was printed; of an error its message and no files."""
    message = ""
    try:
        assert main([*inputs, "--out", str(out), *OPTIONS, *options]) == 0
    except UserError as error:
        message = str(error)
        assert not out.exists()
    printed = capsys.readouterr()
    files = {path.name: path.read_bytes() for path in out.iterdir()} if out.exists() else {}
    shutil.rmtree(out, ignore_errors=True)
    assert list(out.parent.iterdir()) in ([], [out.parent / "in"]), "temporary files"
    return files, printed.out + printed.err + message


def same(capsys, store: Store, folder: Path, names: list[str], *options: str) -> str:
    """Imports files of the folder, and the same ones from the store. Returns what was printed."""
    upload(store, folder, "in")
    results = []
    for place in (str(folder), IN):
        (folder.parent / "out").mkdir(exist_ok=True)
        inputs = [f"{place}/{name}".removesuffix("/") for name in names]
        own = [option.replace("IN", place) for option in options]
        files, printed = imported(capsys, folder.parent / "out" / "made", inputs, own)
        results.append(({name: data.replace(place.encode(), b"IN") for name, data in files.items()}, printed))
    assert results[1][0] == results[0][0]
    assert results[1][1] == results[0][1].replace(str(folder), IN)
    return results[1][1]


def write(folder: Path) -> None:
    """Files of all formats: regular tables, one whose fields have line breaks, and compressed ones."""
    parts = [table(150, seed) for seed in range(3)]
    plain = [part.drop("note") for part in parts]
    for kind in ("csv", "broken", "jsonl", "parquet", "packed"):
        (folder / kind / "sub").mkdir(parents=True)
    for number, name in enumerate(("b", "a", "sub/c")):
        plain[number].write_csv(folder / "csv" / f"{name}.csv")
        parts[number].write_csv(folder / "broken" / f"{name}.csv")
        parts[number].write_ndjson(folder / "jsonl" / f"{name}.jsonl")
        parts[number].write_parquet(folder / "parquet" / f"{name}.parquet", row_group_size=40)
    (folder / "packed" / "a.csv.gz").write_bytes(gzip.compress((folder / "csv" / "a.csv").read_bytes()))
    (folder / "packed" / "b.csv.zst").write_bytes(zstandard.compress((folder / "broken" / "b.csv").read_bytes()))
    (folder / "packed" / "c.jsonl.gz").write_bytes(gzip.compress((folder / "jsonl" / "a.jsonl").read_bytes()))
    (folder / "packed" / "d.jsonl.zst").write_bytes(zstandard.compress((folder / "jsonl" / "b.jsonl").read_bytes()))
    (folder / "csv" / "_SUCCESS").touch()
    items = pl.DataFrame({"item": list(range(28)), "title": [f"Title {at % 7}" for at in range(28)]})
    items.write_csv(folder / "items.csv")
    items.write_parquet(folder / "items.parquet")


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["csv"], ["--items", "IN/items.parquet"]),
        (["broken/"], ["--items", "IN/items.csv"]),
        (["jsonl"], []),
        (["parquet"], ["--items", "IN/items.*v"]),
        (["csv/*.csv", "csv/sub/c.csv"], ["--to", "mds"]),
        (["packed/a.csv.gz"], []),
        (["packed/b.csv.zst"], []),
        (["packed/*.jsonl.*"], []),
        (["parquet/sub/c.parquet"], []),
    ],
)
def test_files_and_messages_are_those_of_local_files(store, folder, capsys, names, options):
    write(folder)
    if options[:1] == ["--to"]:
        upload(store, folder, "in")
        out = [folder.parent / "out" / name for name in ("local", "remote")]
        for place, made in zip((str(folder), IN), out, strict=True):
            assert main([*(f"{place}/{name}" for name in names), "--out", str(made), *OPTIONS, *options]) == 0
        shards = [{path.relative_to(made): path.read_bytes() for path in made.glob("*/*.mds")} for made in out]
        assert shards[0] == shards[1] != {}
        return
    assert "columns of" in same(capsys, store, folder, names, *options)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("in", {}, "found no such"),
        ("a.csv", {"a.csv": "user,item,ts\nu,i,1\nu,,3\n"}, f"{IN}/a.csv, line 3: column 'item': found nothing"),
        ("a.csv", {"a.csv": "user,item,ts\nu,i\n"}, f"{IN}/a.csv, line 2: found 2 fields, expected 3"),
        ("a.jsonl", {"a.jsonl": '{"user": 1}\n[]\n'}, f"{IN}/a.jsonl: none of its columns (user)"),
        ("a.csv", {"a.csv": ""}, f"{IN}/a.csv: is empty"),
        ("a.parquet", {"a.parquet": "no"}, f"{IN}/a.parquet: is no Parquet file"),
        ("a.parquet", {"a.parquet": "PAR1????????PAR1"}, f"{IN}/a.parquet: cannot be read; expected a complete"),
        ("a.csv.gz", {"a.csv.gz": "no"}, f"{IN}/a.csv.gz: found a corrupted gzip stream"),
        ("a.bin", {"a.bin": "x"}, f"{IN}/a.bin: the file extension '.bin' is unknown"),
        ("", {"a.bin": "x"}, f"{IN}: found only files such as a.bin in this folder"),
        ("", {"_x": "x"}, f"{IN}: found no file in this folder"),
        ("*.csv", {"a.bin": "x"}, f"{IN}/*.csv: found no file that matches this pattern"),
    ],
)
def test_errors_name_the_address_and_the_line(store, folder, capsys, name, content, said):
    for file, text in content.items():
        (folder / file).write_text(text)
    if content:
        printed = same(capsys, store, folder, [name])
    else:
        _, printed = imported(capsys, folder.parent / "out" / "made", [IN], [])
    assert said in printed


def test_an_input_that_is_given_twice_or_changes_ends_the_import(store, folder, capsys, monkeypatch):
    write(folder)
    same(capsys, store, folder, ["csv/*.csv", "csv/a.csv"])
    read = RemoteFile.polars_options
    for name in ("parquet/a.parquet", "csv/a.csv"):

        def changed(file: RemoteFile) -> dict[str, str]:
            store.put(f"in/{name}", store.read_bytes(f"in/{name}") + b"u1,1,1,1\n")  # noqa: B023
            return read(file)

        monkeypatch.setattr(RemoteFile, "polars_options", changed)
        _, printed = imported(capsys, folder.parent / "out" / "made", [f"{IN}/{name}"], [])
        assert printed.endswith(f"{IN}/{name}: changed while it was read; start again when it is complete")


@needs_java
@pytest.mark.slow
def test_ranges_are_read_in_the_executors_of_spark(store, folder, capsys, monkeypatch):
    pytest.importorskip("pyspark")
    from ugt_composer.spark.session import spark_session

    monkeypatch.setattr(spark_reader, "SPAN_BYTES", 2500)
    monkeypatch.setattr(spark_reader, "SPAN_ROWS", 100)
    write(folder)
    with (folder / "csv" / "sub" / "c.csv").open("a") as file:
        file.write("u,,1,1\n")
    upload(store, folder, "in")
    (folder.parent / "out").mkdir()
    out = folder.parent / "out" / "made"
    with spark_session(MASTER, "test", executor_environment()):
        for name in ("csv", "parquet"):
            options = ["--on-error", "skip", "--items", f"{IN}/items.csv"]
            files, printed = imported(capsys, out, [f"{IN}/{name}"], [*options, "--engine", "spark"])
            assert (files, printed) == imported(capsys, out, [f"{IN}/{name}"], options)
            assert len(files["train.jsonl"]) > 1000
            assert (f"{IN}/csv/sub/c.csv, line 152: column 'item': found nothing" in printed) == (name == "csv")
