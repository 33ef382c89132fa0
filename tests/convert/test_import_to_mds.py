"""`--to mds`: the same shards as by way of files, without the files."""

import json
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from convert.interactions_to_jsonl import main
from convert.jsonl_to_mds import main as convert
from tests.shop import ROOT
from ugt_composer.config.load import load_config
from ugt_composer.data.manifest import read_manifest
from ugt_composer.errors import UserError

BESIDE = {"actions.json", "catalogue.jsonl", "item_neighbours.npz", "item_vectors.npy", "report.json"}
BESIDE |= {"semantic_ids.json", "semantic_ids.npz", "data.yaml", "preferences.yaml"}
LENGTHS = (3, 40, 700, 12, 5, 9)  # interactions of the users


@pytest.fixture(autouse=True)
def table(tmp_path, monkeypatch) -> None:
    """ratings.csv, codes that two items share, and the working folder of the test."""
    random = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    users = [f'ü"{number}\\ 日' for number, length in enumerate(LENGTHS * 3) for _ in range(length)]
    columns = {"user": users, "item": random.integers(0, 60, len(users)), "rating": random.integers(1, 6, len(users))}
    times = np.arange(len(users)) * 1000 + 1_000_000_000
    pl.DataFrame({**columns, "timestamp": times}).write_csv("ratings.csv")
    codes = {str(item): [item // 20, item // 4 % 5, item // 2 % 2] for item in range(60)}
    Path("codes.json").write_text(json.dumps(codes))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shards_of_files(capsys, options: list[str], form: list[str]) -> dict[str, dict[str, bytes]]:
    """The folders that the printed commands make of an import to JSON Lines, which is removed then."""
    assert main(["ratings.csv", "--out", "data/movies", *options]) == 0
    commands = re.findall(r"^  ugt convert (.*)$", capsys.readouterr().out, re.MULTILINE)
    for command in commands:
        assert convert([*shlex.split(command), *form]) == 0
    folders = {folder.name: contents(folder) for folder in Path("mds").iterdir()}
    assert len(folders) == len(commands)
    for name in ("data", "mds"):
        Path(name).rename(f"{name}_of_files")
    return folders


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ([], ["--range-bytes", "20000"]),
        (["--codes", "codes.json"], ["--compression", "zstd:1", "--hashes", "sha1", "--size-limit", "20kb"]),
        (["--history", "all", "--min-rating", "3", "--signals", "times"], []),
        (
            ["--split", "time", "--held-out-users", "0.3", "--every-target", "--no-preferences", "--max-history", "20"],
            [],
        ),
        (["--max-history", "600", "--max-targets", "150", "--cuts-per-user", "3"], ["--range-bytes", "5000"]),
        (["--min-interactions", "9999"], []),
    ],
)
def test_shards_have_the_bytes_of_the_conversion_of_the_files(capsys, options, form):
    expected = shards_of_files(capsys, options, form)
    assert main(["ratings.csv", "--out", "data/movies", *options, "--to", "mds", *form]) == 0
    out = Path("data/movies")
    folders = {path.name: contents(path) for path in out.iterdir() if path.is_dir()}
    assert folders == expected
    assert {path.name for path in out.iterdir()} - set(folders) <= BESIDE
    assert [path.name for path in Path("data").iterdir()] == ["movies"]

    report = json.loads((out / "report.json").read_text())
    of_files = json.loads(Path("data_of_files/movies/report.json").read_text())
    rows = {name.removesuffix(".jsonl"): rows for name, rows in of_files["rows"].items()}
    assert report == of_files | {"rows": rows}
    for name in folders:
        manifest = read_manifest(out / name)
        assert manifest.rows == rows[name]
        assert manifest.catalogue_file == "data/movies/catalogue.jsonl"
    cut = [json.loads(folder["manifest.json"])["counts"]["truncated_histories"] for folder in folders.values()]
    assert cut == [0] * len(folders)


def test_the_next_command_names_the_folders(capsys):
    main(["ratings.csv", "--out", "out", "--to", "mds"])
    printed = capsys.readouterr().out
    assert "\n  ugt train yamls/stage1.yaml out/data.yaml --dry-run\n" in printed
    config = load_config(ROOT / "yamls/stage1.yaml", "out/data.yaml")
    assert (config.data.train.local, config.data.eval.local) == ("out/train", "out/validation")
    assert config.data.catalogue == "out/catalogue.jsonl"
    assert "ugt convert" not in printed
    assert re.search(r"^train: \d+ rows$", printed, re.MULTILINE)
    assert "no training pairs" not in printed


def test_options_of_shards_need_them():
    for option in (["--compression", "zstd"], ["--hashes", "none"], ["--size-limit", "1mb"]):
        with pytest.raises(UserError, match=rf"{option[0]}: expected --to mds too"):
            main(["ratings.csv", "--out", "out", *option])
    with pytest.raises(UserError, match="did you mean zstd"):
        main(["ratings.csv", "--out", "out", "--to", "mds", "--compression", "zst"])
    assert not Path("out").exists()


def test_an_earlier_import_is_replaced_in_either_form(capsys):
    main(["ratings.csv", "--out", "out", "--to", "mds", "--no-preferences"])
    with pytest.raises(UserError, match="give --overwrite"):
        main(["ratings.csv", "--out", "out", "--to", "mds"])
    main(["ratings.csv", "--out", "out", "--overwrite", "--no-preferences"])
    assert not Path("out/train").exists()
    main(["ratings.csv", "--out", "out", "--overwrite", "--no-preferences", "--to", "mds"])
    assert not Path("out/train.jsonl").exists()
    Path("out/train/notes.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"holds train/notes\.txt, which this program did not write"):
        main(["ratings.csv", "--out", "out", "--overwrite"])
    assert Path("out/train/notes.txt").exists()


COMMAND = [sys.executable, str(ROOT / "convert/interactions_to_jsonl.py"), "ratings.csv", "--out", "out"]


def limit_size_of_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))


@pytest.mark.parametrize("to", ["mds", pytest.param("jsonl", marks=pytest.mark.slow)])
def test_a_full_disk_is_an_error_in_one_sentence_that_leaves_nothing(to):
    """A limit of the size of files stands for it: only the training rows are larger."""
    command = [*COMMAND, "--to", to, "--no-preferences"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=limit_size_of_files)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert done.stderr.endswith("; nothing was written to out\n")
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["codes.json", "ratings.csv"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_import_says_so_and_leaves_nothing(number):
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not list(Path().glob(".out.partial-*")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed) == (128 + number, ""), errors
    assert errors.splitlines()[-1] == "interrupted; nothing was written to out"
    assert "Traceback" not in errors
    assert sorted(path.name for path in Path().iterdir()) == ["codes.json", "ratings.csv"]


def test_a_killed_import_leaves_the_earlier_output():
    main(["ratings.csv", "--out", "out", "--to", "mds", "--no-preferences"])
    before = contents(Path("out"))
    command = [*COMMAND, "--to", "mds", "--overwrite", "--range-bytes", "300"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not list(Path().glob(".out.partial-*/.train.converting-*/*.mds")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert contents(Path("out")) == before
    assert not list(Path().glob(".out.partial-*/train"))
