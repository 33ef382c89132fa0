"""Conversion with --engine spark on two cores of this machine: the bytes and messages of the local engine."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from tests.conversion.conversion_cases import SMALL, contents, main, preference_row, recommend_row, siblings, write_rows
from tests.conversion.executors import Faults
from tests.conversion.test_convert import PROGRAM, group_is_gone
from tests.shop import ROOT
from tests.spark.cluster import DEADLINE, wait_until
from tests.spark.spark_cases import MASTER, needs_java
from ugt_composer.errors import UserError
from ugt_composer.jsonl.schema import ACTIONS_NAME, ITEM_KEYS
from ugt_composer.spark.session import spark_session

pytest.importorskip("pyspark")
pytestmark = needs_java
TASKS = ["--range-bytes", "2500", "--size-limit", "4096"]  # more than ten
LENIENT = ["--on-error", "quarantine", "--max-error-rate", "1"]


@pytest.fixture(scope="module")
def session():
    with spark_session(MASTER, "test") as session:
        yield session


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A folder with plain and compressed files, one of which has bad rows and blank lines; and one that is empty."""
    rng = random.Random(3)
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = [recommend_row(rng, f"u{at}", rng.randrange(9)) for at in range(60)]
    plain = write_rows(folder / "a.jsonl", rows[:40])
    text = plain.read_bytes().replace(b'"u11"', b"11").replace(b'"u29"', b'"u29", "extra": 1')
    plain.write_bytes(text + b"\n{\n" + json.dumps(rows[40]).encode())
    packed = write_rows(folder / "b.jsonl", rows[41:50]).read_bytes()
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(packed + b"[]\n"))
    (folder / "b.jsonl").unlink()
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(write_rows(tmp_path / "c.jsonl", rows[50:]).read_bytes()))
    (folder / "empty.jsonl").touch()
    monkeypatch.chdir(tmp_path)  # paths are relative: tasks may run in another folder
    return "rows"


def both(capsys, session, *options):
    """Converts by both engines. Returns the output of Spark, which is compared with that of the local engine."""
    printed = []
    for engine in ("local", "spark"):
        assert main([*options, "--out", engine, "--engine", engine, *SMALL, *TASKS]) == 0
        printed.append(capsys.readouterr().out.replace(f"{engine}: ", "").replace(f"in {engine}/", ""))
    made = contents(Path("spark"))
    assert made == contents(Path("local"))
    assert printed[0] == printed[1]
    assert siblings(Path("spark")) == []
    return made


def test_files_of_all_kinds_with_bad_rows(session, inputs, capsys):
    made = both(capsys, session, inputs, "--kind", "recommend", *LENIENT)
    assert sum(name.startswith("shard.") for name in made) > 5
    entries = [json.loads(line) for line in made["quarantine.jsonl"].splitlines()]
    places = [(entry["file"], entry["line"]) for entry in entries]
    assert places == [("rows/a.jsonl", 12), ("rows/a.jsonl", 42), ("rows/b.jsonl.gz", 10)]


def test_preferences_a_catalogue_actions_and_compression(session, inputs, tmp_path, capsys):
    rng = random.Random(4)
    rows = [preference_row(rng, f"u{at}", rng.randrange(1, 6)) for at in range(60)]
    for row in rows:
        history = row["user_sequence"]
        history["encoder_actions"] = [rng.randrange(3) for _ in history["encoder_mask"]]
    source = write_rows(tmp_path / "preference.jsonl", rows)
    (tmp_path / ACTIONS_NAME).write_text('["view", "buy"]')
    ids = [(l1, l2, l3) for l1 in range(5, 12) for l2 in range(5, 14) for l3 in range(5, 15)]  # not those with 15
    lines = [{"item_id": str(at), **dict(zip(ITEM_KEYS, triple, strict=True))} for at, triple in enumerate(ids)]
    write_rows(tmp_path / "items.jsonl", lines)
    options = ["--catalogue", "items.jsonl", "--max-fraction-outside-catalogue", "1", "--compression", "zstd:3"]
    made = both(capsys, session, str(source), "--kind", "preference", *options, "--hashes", "sha1", "xxh64")
    manifest = json.loads(made["manifest.json"])
    assert manifest["actions"] == ["view", "buy"]
    assert sum(manifest["catalogue"]["outside"].values()) > 0
    assert "catalogue.jsonl.zst" in made


@pytest.mark.parametrize(
    "options", [[], ["--on-error", "quarantine"], [*LENIENT, "--catalogue", "rows/items.jsonl"], ["--max-history", "0"]]
)
def test_errors_have_the_same_words_and_leave_nothing(session, inputs, tmp_path, options):
    items = {"item_id": "1", "l1_id": 5, "l2_id": 5, "l3_id": 5}
    messages = []
    for engine in ("local", "spark"):
        (tmp_path / engine).mkdir()
        write_rows(tmp_path / "rows" / "items.jsonl", [items])
        arguments = ["rows/a.jsonl", "rows/b.jsonl.gz", "--kind", "recommend", "--out", f"{engine}/out", *SMALL, *TASKS]
        with pytest.raises(UserError) as error:
            main([*arguments, "--engine", engine, *options])
        messages.append(str(error.value).replace(f"{engine}/out", "out"))
        assert siblings(tmp_path / engine / "out") == (
            ["out.quarantine.jsonl"] if options == ["--on-error", "quarantine"] else []
        )
        assert not (tmp_path / engine / "out").exists()
    assert messages[0] == messages[1]


def test_a_corrupted_file_after_a_bad_row_is_not_the_first_error(session, inputs, tmp_path):
    (tmp_path / "rows" / "b.jsonl.gz").write_bytes(b"no gzip")
    arguments = ["--kind", "recommend", "--out", "out", "--engine", "spark", *SMALL, *TASKS]
    with pytest.raises(UserError, match=r"^rows/a\.jsonl:12: user_id"):
        main(["rows/a.jsonl", "rows/b.jsonl.gz", *arguments])
    with pytest.raises(UserError, match=r"^rows/b\.jsonl\.gz: found a corrupted gzip stream"):
        main(["rows/b.jsonl.gz", "rows/a.jsonl", *arguments])
    assert siblings(tmp_path / "out") == []


def test_rows_after_a_bad_one_are_not_converted(session, tmp_path, monkeypatch):
    """With --on-error fail; otherwise a large input would be converted to its end for nothing."""
    from ugt_composer.conversion.parts import has_earlier_error, note_error

    place = str(tmp_path)
    assert not has_earlier_error(place, 7)
    note_error(place, 5)
    assert [has_earlier_error(place, number) for number in (4, 5, 6)] == [False, False, True]
    shutil.rmtree(tmp_path)
    note_error(place, 5)  # a task that ends after the conversion
    assert not tmp_path.exists()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_spark_and_leaves_nothing(inputs, tmp_path, number, status):
    faults = Faults(tmp_path / "faults")
    faults.inject("signal", seconds=1.0)
    command = [sys.executable, str(PROGRAM), inputs, "--kind", "recommend", "--out", "out", *SMALL, *TASKS, *LENIENT]
    process = subprocess.Popen(
        [*command, "--engine", "spark", "--master", MASTER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{faults.folder}:{ROOT}"},
        start_new_session=True,
    )
    wait_until(lambda: len(faults.attempts()) > 2 or process.poll() is not None, "tasks are running")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    output, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, output, errors) == (status, "", "interrupted; nothing was written to out\n")
    assert siblings(tmp_path / "out") == []
    assert not (tmp_path / "out").exists()
    wait_until(lambda: group_is_gone(process.pid), "Spark's processes have ended")
