"""JSON Lines in S3: the shards and messages of the same files in a folder, apart from their addresses."""

import gzip
import json
import random
import shutil

import pytest
import zstandard

from tests.conversion.conversion_cases import SMALL, contents, main, recommend_row, siblings, write_rows
from tests.spark.spark_cases import MASTER, needs_java
from tests.storage.s3_server import executor_environment, upload
from ugt_composer.errors import UserError
from ugt_composer.jsonl import sources
from ugt_composer.jsonl.schema import ITEM_KEYS
from ugt_composer.storage import remote_files

pytestmark = pytest.mark.processes
IN = "s3://bucket/in"
OPTIONS = ["--kind", "recommend", "--range-bytes", "2500", "--size-limit", "4096", *SMALL]
LENIENT = ["--on-error", "quarantine", "--max-error-rate", "1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Plain and compressed files, with bad rows, a catalogue and names of actions beside them."""
    monkeypatch.setattr(remote_files, "LEAST_BYTES", 1000)
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    rng = random.Random(3)
    rows = [recommend_row(rng, f"u{at}", rng.randrange(9)) for at in range(60)]
    for row in rows[::2]:
        row["encoder_actions"] = [rng.randrange(3) for _ in row["encoder_mask"]]
    plain = write_rows(folder / "a.jsonl", rows[:40])
    plain.write_bytes(plain.read_bytes() + b"\n{\n" + json.dumps(rows[40]).encode())
    packed = write_rows(tmp_path / "b.jsonl", rows[41:50]).read_bytes()
    (folder / "more" / "b.jsonl.gz").write_bytes(gzip.compress(packed + b"[]\n"))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(write_rows(tmp_path / "c.jsonl", rows[50:]).read_bytes()))
    (folder / "empty.jsonl").touch()
    (folder / "notes.txt").write_text("no rows")
    ids = [(l1, l2, l3) for l1 in range(5, 12) for l2 in range(5, 14) for l3 in range(5, 15)]  # not those with 15
    items = [{"item_id": str(at), **dict(zip(ITEM_KEYS, triple, strict=True))} for at, triple in enumerate(ids)]
    write_rows(tmp_path / "catalogue.jsonl", items)
    (folder / "actions.json").write_text('["view", "buy"]')
    return folder


def converted(capsys, out, inputs, *options) -> tuple[dict[str, bytes], str]:
    """The output, and what was printed; of an error its message and no output."""
    message = ""
    try:
        assert main([*inputs, "--out", str(out), *OPTIONS, *options]) == 0
    except UserError as error:
        message = str(error)
        assert not out.exists()
    files = contents(out) if out.exists() else {}
    shutil.rmtree(out, ignore_errors=True)
    printed = capsys.readouterr()
    return files, printed.out + printed.err + message


def same(capsys, store, folder, names, *options, engine=()) -> tuple[dict[str, bytes], str]:
    """Converts files of the folder, and the same ones from the store."""
    upload(store, folder, "in")
    results = []
    for number, (place, own) in enumerate(((str(folder), ()), (IN, engine))):
        inputs = [f"{place}/{name}".removesuffix("/") for name in names]
        out = folder.parent / str(number) / "out"
        out.parent.mkdir(exist_ok=True)
        files, printed = converted(capsys, out, inputs, *own, *(option.replace("IN", place) for option in options))
        files = {name: data.replace(str(folder).encode(), IN.encode()) for name, data in files.items()}
        results.append((files, printed.replace(str(folder), IN).replace(str(out), "OUT")))
        assert siblings(out) == [] or LENIENT[0] in options
    assert results[0] == results[1]
    return results[1]


def test_a_prefix_has_the_shards_and_bad_rows_of_the_folder(store, folder, capsys):
    (folder / "actions.json").unlink()
    files, _ = same(capsys, store, folder, [""], *LENIENT)
    assert sum(name.startswith("shard.") for name in files) > 5
    places = [(entry["file"], entry["line"]) for entry in map(json.loads, files["quarantine.jsonl"].splitlines())]
    assert places == [(f"{IN}/a.jsonl", 42), (f"{IN}/more/b.jsonl.gz", 10)]


def test_workers_read_ranges_too(store, folder, capsys):
    names = ["a.jsonl", "c.jsonl.zst", "more"]
    files, _ = same(capsys, store, folder, names, *LENIENT, engine=("--workers", "2"))
    assert json.loads(files["manifest.json"])["actions"] == ["view", "buy"], "the file beside the input"


def test_a_catalogue_is_found_beside_the_rows_or_named(store, folder, capsys):
    (folder.parent / "catalogue.jsonl").rename(folder / "catalogue.jsonl")
    _, printed = same(capsys, store, folder, ["c.jsonl.zst"])
    assert f"{IN}/catalogue.jsonl" in printed
    (folder / "catalogue.jsonl").rename(folder / "items.jsonl")
    named = ["--catalogue", "IN/items.jsonl", "--max-fraction-outside-catalogue", "1", "--actions", "IN/actions.json"]
    files, _ = same(capsys, store, folder, ["c.jsonl.zst"], *named)
    assert json.loads(files["manifest.json"])["catalogue"]["file"] == f"{IN}/items.jsonl"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.jsonl"], f"{IN}/a.jsonl:42: line: "),
        (["notes.txt"], f"{IN}/notes.txt: the name must end in one of .jsonl"),
        (["empty.jsonl"], f"{IN}/empty.jsonl: no rows in the input"),
        (["c.jsonl.zst", ""], f"{IN}/c.jsonl.zst: given twice (first as {IN}/c.jsonl.zst)"),
    ],
)
def test_errors_name_the_address_and_the_line(store, folder, capsys, names, said):
    assert said in same(capsys, store, folder, names)[1]


def test_what_cannot_be_read_ends_the_conversion(store, folder, capsys, tmp_path, monkeypatch):
    upload(store, folder, "in")
    out = tmp_path / "made" / "out"
    for inputs, said in (
        ([f"{IN}/d.jsonl"], f"{IN}/d.jsonl: found no such object or prefix; did you mean {IN}/a.jsonl?"),
        (["s3://nowhere/d.jsonl"], "there is no bucket nowhere"),
    ):
        assert said in converted(capsys, out, inputs)[1]
    with pytest.raises(UserError, match=f"--out {IN}/mds lies inside the input folder {IN}; name a folder outside"):
        main([IN, "--out", f"{IN}/mds", *OPTIONS])
    with pytest.raises(UserError, match=f"{IN}/a.jsonl: lies inside --out {IN}, which would be replaced"):
        main([f"{IN}/a.jsonl", "--out", IN, "--overwrite", *OPTIONS])
    find = sources.find_object

    def found_and_changed(address):
        file = find(address)
        store.put("in/c.jsonl.zst", b"changed")
        return file

    monkeypatch.setattr(sources, "find_object", found_and_changed)
    _, printed = converted(capsys, out, [f"{IN}/c.jsonl.zst"])
    assert printed == f"{IN}/c.jsonl.zst: changed while it was read; start again when it is complete"
    assert siblings(out) == []


@needs_java
def test_ranges_are_read_in_the_executors_of_spark(store, folder, capsys):
    pytest.importorskip("pyspark")
    from ugt_composer.spark.session import spark_session

    with spark_session(MASTER, "test", executor_environment()):
        engine = ("--engine", "spark")
        files, _ = same(capsys, store, folder, ["a.jsonl", "c.jsonl.zst", "more"], *LENIENT, engine=engine)
    assert len(files) > 5
    assert f"{IN}/a.jsonl" in files["quarantine.jsonl"].decode()
