"""--out s3://bucket/prefix: the objects of a local conversion, an index only when they are complete."""

import random
from pathlib import Path

import pytest

from tests.conversion.conversion_cases import SMALL, contents, main, recommend_row, write_rows
from tests.spark.spark_cases import MASTER, needs_java
from tests.storage.s3_server import executor_environment, loopback_bucket
from ugt_composer.conversion import remote_output
from ugt_composer.errors import UserError
from ugt_composer.spark.session import spark_session
from ugt_composer.storage.s3 import MissingError, Store, StoreError

OPTIONS = ["--kind", "recommend", "--range-bytes", "3000", "--size-limit", "4096", *SMALL]
OUT = "s3://bucket/mds/train"
pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def store():
    """The bucket of a store on loopback."""
    with loopback_bucket() as store:
        yield store


@pytest.fixture
def source(tmp_path, store):
    store.delete(list(store.list()))
    rng = random.Random(5)
    return write_rows(tmp_path / "rows.jsonl", [recommend_row(rng, f"u{at}") for at in range(40)])


def objects(store: Store) -> dict[str, bytes]:
    return {name: store.read_bytes(name) for name in store.list()}


def local(source: Path, *options: str) -> dict[str, bytes]:
    out = source.parent / "local"
    assert main([str(source), "--out", str(out), "--overwrite", *OPTIONS, *options]) == 0
    return contents(out)


@pytest.fixture
def session(store):
    """An active session."""
    pytest.importorskip("pyspark")
    with spark_session(MASTER, "test", executor_environment()):
        yield


@needs_java
def test_the_objects_of_spark_are_those_of_a_local_conversion(session, store, source):
    the_objects_are_those_of_a_local_conversion(store, source, ["--engine", "spark"])


def test_the_objects_are_those_of_a_local_conversion(store, source):
    the_objects_are_those_of_a_local_conversion(store, source, ["--workers", "2"])


def the_objects_are_those_of_a_local_conversion(store, source, engine):
    source.write_bytes(source.read_bytes() + b"{\n")
    options = ["--on-error", "quarantine", "--max-error-rate", "0.1", *engine]
    assert main([str(source), "--out", OUT, *OPTIONS, *options]) == 0
    expected = local(source, "--on-error", "quarantine", "--max-error-rate", "0.1")
    assert objects(store) == {f"mds/train/{name}": data for name, data in expected.items()}
    assert sum("shard." in name for name in expected) > 5


def test_an_earlier_output_is_replaced_only_if_wanted_and_complete(store, source):
    store.put("mds/train/notes.txt", b"mine")
    with pytest.raises(UserError, match="exists already; give --overwrite to replace it, or name another prefix"):
        main([str(source), "--out", OUT, *OPTIONS])
    with pytest.raises(UserError, match=r"holds notes\.txt, which no conversion wrote"):
        main([str(source), "--out", OUT, "--overwrite", *OPTIONS])
    store.delete(["mds/train/notes.txt"])
    assert main([str(source), "--out", OUT, *OPTIONS]) == 0
    before = objects(store)
    good = source.read_bytes()
    source.write_bytes(good + b"{\n")
    with pytest.raises(UserError, match=r"rows\.jsonl:41: line: "):
        main([str(source), "--out", OUT, "--overwrite", *OPTIONS])
    assert objects(store) == before
    source.write_bytes(good[: len(good) // 2].rpartition(b"\n")[0] + b"\n")
    assert main([str(source), "--out", OUT, "--overwrite", *OPTIONS]) == 0
    assert objects(store) == {f"mds/train/{name}": data for name, data in local(source).items()}


def test_too_many_bad_rows_are_written_beside_the_output(store, source):
    source.write_bytes(source.read_bytes() + b"{\n")
    with pytest.raises(UserError, match=r"it is in s3://bucket/mds/train\.quarantine\.jsonl, nothing else was written"):
        main([str(source), "--out", OUT, "--on-error", "quarantine", "--max-error-rate", "0", *OPTIONS])
    assert list(store.list()) == ["mds/train.quarantine.jsonl"]


def test_a_store_that_fails_while_shards_are_copied_leaves_nothing(store, source, monkeypatch):
    copy = Store.copy

    def failing(self: Store, name: str, to: str) -> None:
        if to.endswith("shard.00003.mds"):
            raise StoreError(f"{name}: the store refuses")
        copy(self, name, to)

    monkeypatch.setattr(Store, "copy", failing)
    with pytest.raises(StoreError, match="the store refuses"):
        main([str(source), "--out", OUT, *OPTIONS])
    assert store.list() == {}


def test_a_shard_that_is_incomplete_in_the_store_is_an_error(store, source, monkeypatch, capsys):
    add_shard = remote_output.RemoteOutput.add_shard
    monkeypatch.setattr(
        remote_output.RemoteOutput, "add_shard", lambda self, part, base, size, to: add_shard(self, part, base, 1, to)
    )
    assert main([str(source), "--out", OUT, *OPTIONS]) == 1
    assert "bytes were written, 1 expected" in capsys.readouterr().err
    assert store.list() == {}


def test_parts_of_a_killed_conversion_are_deleted_when_no_running_one_can_have_written_them(
    store, source, monkeypatch, caplog
):
    others = {"mds/.other.converting-0123abcd/part-0/shard.00000.mds", "mds/.train.converting-notes/a"}
    parts = {f"mds/.train.converting-0123abcd/part-{n}/shard.00000.mds" for n in (0, 1)}
    for name in others | parts:
        store.put(name, b"left")
    assert main([str(source), "--out", OUT, *OPTIONS]) == 0
    assert others | parts <= store.list().keys()
    assert "s3://bucket/mds/.train.converting-0123abcd has parts of another conversion" in caplog.text
    running = "mds/.train.converting-0123abce/part-0/shard.00000.mds"
    store.put(running, b"of a running one")
    ages, day = Store.ages, 24 * 3600
    monkeypatch.setattr(
        Store, "ages", lambda self, start: {n: age + day * ("abcd" in n) for n, age in ages(self, start).items()}
    )
    assert main([str(source), "--out", OUT, "--overwrite", *OPTIONS]) == 0
    assert {name for name in store.list() if "converting" in name} == {*others, running}


def test_a_missing_bucket_is_named(store, source):
    with pytest.raises(MissingError, match="there is no bucket nowhere"):
        main([str(source), "--out", "s3://nowhere/mds", *OPTIONS])
