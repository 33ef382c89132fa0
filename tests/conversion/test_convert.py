"""The program as users run it: exit codes, --overwrite, kills and signals."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conversion.conversion_cases import SMALL, contents, decoded_rows, main, recommend_row, siblings, write_rows
from ugt_composer.errors import UserError

PROGRAM = Path(__file__).parents[2] / "convert" / "jsonl_to_mds.py"
RECOMMEND = ["--kind", "recommend", *SMALL]


@pytest.fixture
def source(tmp_path):
    rng = random.Random(0)
    return write_rows(tmp_path / "rows.jsonl", [recommend_row(rng, f"u{at}") for at in range(30)])


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments), *RECOMMEND]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_exit_codes_and_streams(tmp_path, source):
    out = tmp_path / "deep" / "out"
    done = run(source, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "30  rows written" in done.stdout
    again = run(source, "--out", out)
    assert (again.returncode, again.stdout) == (2, "")
    assert (
        again.stderr == f"error: --out {out} exists already; give --overwrite to replace it, or name another folder\n"
    )
    usage = run(source, "--out", out, "--on-error", "ignore")
    assert usage.returncode == 2
    assert "Traceback" not in usage.stderr
    help_text = run("--help").stdout
    assert "ugt convert data/train.jsonl --kind recommend --out mds/train" in help_text
    assert "range-bytes" not in help_text


def test_importing_the_conversion_imports_no_torch():
    code = "import sys, ugt_composer.conversion.convert; print({'torch', 'streaming', 'composer'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--codebook-sizes", "12", "5", "16"], "--codebook-sizes 5 is outside"),
        (["--max-history", "0"], "--max-history 0 is outside"),
        (["--workers", "0"], "--workers 0 is less than 1"),
        (["--compression", "zst"], "did you mean zstd"),
        (["--compression", "zstd:99"], "levels 1..22"),
        (["--hashes", "xxh65"], "did you mean xxh64"),
        (["--max-error-rate", "nan"], "outside 0..1"),
        (["--size-limit", "5gb"], "--size-limit"),
        (["--out", "gs://bucket/out"], "expected s3://bucket/prefix"),
        (["--out", "s3://bucket"], "is a whole bucket; name a prefix in it, such as s3://bucket/train"),
        (["--master", "local[2]"], "--master local.2. is for --engine spark; --workers N"),
        (["--engine", "spark", "--workers", "2"], "--workers 2 is for --engine local; with spark, --master"),
        (["--engine", "spark", "--master", "lokal"], "--master lokal is unknown"),
    ],
)
def test_nonsensical_options_are_refused(tmp_path, source, options, message):
    with pytest.raises(UserError, match=message):
        main([str(source), "--kind", "recommend", "--out", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_hashes_and_compression_are_options(tmp_path, source):
    out = tmp_path / "out"
    options = ["--hashes", "xxh64,sha1", "--compression", "zstd:5"]
    assert main([str(source), "--out", str(out), *options, *RECOMMEND]) == 0
    (shard,) = json.loads((out / "index.json").read_text())["shards"]
    assert list(shard["zip_data"]["hashes"]) == ["sha1", "xxh64"]
    assert shard["zip_data"]["basename"] == "shard.00000.mds.zstd"
    assert main([str(source), "--out", str(out), "--hashes", "none", "--overwrite", *RECOMMEND]) == 0
    (shard,) = json.loads((out / "index.json").read_text())["shards"]
    assert shard["raw_data"]["hashes"] == {}
    assert set(contents(out)) == {"index.json", "manifest.json", "shard.00000.mds"}


def test_an_existing_output_is_replaced_only_when_the_new_one_is_complete(tmp_path, source):
    out = tmp_path / "out"
    main([str(source), "--out", str(out), *RECOMMEND])
    before = contents(out)
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(source.read_bytes() + b"{")
    with pytest.raises(UserError, match=r"bad\.jsonl:31"):
        main([str(bad), "--out", str(out), "--overwrite", *RECOMMEND])
    assert contents(out) == before
    write_rows(source, [recommend_row(random.Random(1), "other")])
    (out / ".catalogue.jsonl.zst.arrays").touch()  # made of the copy of a large catalogue
    assert main([str(source), "--out", str(out), "--overwrite", *RECOMMEND]) == 0
    assert [row.user_id for row in decoded_rows(out)] == ["other"]
    assert siblings(out) == []


def test_a_folder_with_other_files_is_never_replaced(tmp_path, source):
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"holds thesis\.txt"):
        main([str(source), "--out", str(out), "--overwrite", *RECOMMEND])
    assert (out / "thesis.txt").exists()
    (out / "thesis.txt").unlink()
    assert main([str(source), "--out", str(out), *RECOMMEND]) == 0  # an empty folder counts as no output


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Input whose conversion takes a few seconds, so that there is time to kill the program."""
    rng = random.Random(0)
    text = "".join(json.dumps(recommend_row(rng, f'say "{at}"')) + "\n" for at in range(3000))
    path = tmp_path_factory.mktemp("large") / "rows.jsonl"
    path.write_text(text * 4)
    return path


def started(large: Path, out: Path, workers: int) -> subprocess.Popen[str]:
    """Starts the program and waits until it is at work."""
    command = [sys.executable, str(PROGRAM), str(large), "--out", str(out), "--workers", str(workers), "--overwrite"]
    command += ["--range-bytes", "500000", "--size-limit", "8kb", *RECOMMEND]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + 30
    while not list(out.parent.glob(f".{out.name}.converting-*/parts/part-*/*.mds")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return process


def group_is_gone(group: int) -> bool:
    """Whether all processes of the group end within a moment."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_work_and_leaves_nothing(tmp_path, large, workers, number, status):
    out = tmp_path / "out"
    process = started(large, out, workers)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert errors == f"interrupted; nothing was written to {out}\n"
    assert not out.exists()
    assert siblings(out) == []
    assert group_is_gone(process.pid)


def test_a_worker_that_is_killed_is_an_error_that_leaves_nothing(tmp_path, large):
    out = tmp_path / "out"
    process = started(large, out, 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    os.kill(next(child for child, command in commands.items() if b"spawn_main" in command), signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.startswith("error: a worker process was killed")
    assert "Traceback" not in errors
    assert siblings(out) == []
    assert not out.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_leaves_nothing_at_out_and_the_next_run_cleans_up(tmp_path, source, large, workers):
    out = tmp_path / "out"
    main([str(source), "--out", str(out), *RECOMMEND])
    before = contents(out)
    process = started(large, out, workers)
    process.kill()
    process.communicate(timeout=30)
    assert contents(out) == before
    assert len(siblings(out)) == 1
    assert group_is_gone(process.pid)
    assert main([str(source), "--out", str(out), "--overwrite", *RECOMMEND]) == 0
    assert contents(out) == before
    assert siblings(out) == []


def test_files_of_a_running_conversion_are_left_alone(tmp_path, source, large):
    out = tmp_path / "out"
    process = started(large, out, 1)
    with pytest.raises(UserError, match="no such file"):
        main([str(tmp_path / "missing.jsonl"), "--out", str(out), *RECOMMEND])
    assert main([str(source), "--out", str(out), *RECOMMEND]) == 0
    assert len(siblings(out)) == 1
    process.terminate()
    process.communicate(timeout=30)
    assert siblings(out) == []
    assert len(decoded_rows(out)) == 30


def test_a_run_killed_between_two_renames_is_undone(tmp_path, source):
    """Killed after the earlier output was moved away, and before the new one is in place."""
    out = tmp_path / "out"
    main([str(source), "--out", str(out), *RECOMMEND])
    before = contents(out)
    out.rename(tmp_path / ".out.earlier-01234567")
    with pytest.raises(UserError, match="exists already"):
        main([str(source), "--out", str(out), *RECOMMEND])
    assert contents(out) == before
