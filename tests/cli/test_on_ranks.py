"""`ugt recommend`, `ugt evaluate` and `ugt reference` on several ranks: the results of one process, and no hang."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.shop import ROOT
from ugt_composer.cli.main import main

pytestmark = pytest.mark.processes
BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TORCHRUN = (BIN / "torchrun", "--nproc-per-node", "2")


def launch(*words) -> subprocess.Popen:
    command = [str(word) for word in words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)


def write_users(path: Path, users: int) -> Path:
    """Histories of different lengths, of which a few have items that do not exist."""
    lines = (
        {"user_id": f"u{u}", "items": [f"item-{(u * 7 + n) % 61}" for n in range(1 + u % 9)]} for u in range(users)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def commands(shop, stages, tmp_path) -> Callable[[str], list[list[str]]]:
    """commands(name) → a command of each kind that writes into files which begin with this name."""
    users = write_users(tmp_path / "users.jsonl", 110)
    best = {stage: ("--checkpoint", stages / f"stage{stage}" / "best") for stage in (2, 3)}
    folders = ("--data", shop / "eval", "--data", shop / "preference_eval")

    def of(name: str) -> list[list[str]]:
        out = tmp_path / name
        options = ("--history", users, "--batch-size", 8, "--users-per-part", 20, "--item-score-weight", 1)
        every = [
            ("recommend", *best[2], *options, "--out", f"{out}-lists"),
            ("evaluate", *best[2], *folders[:2], "--batch-size", 6, "--json", f"{out}-2.json"),
            ("evaluate", *best[3], *folders, "--batch-size", 6, "--json", f"{out}-3.json"),
            ("reference", *best[2], "--data", shop / "preference", "--batch-size", 7, "--out", f"{out}-rows"),
        ]
        return [[str(word) for word in command] for command in every]

    return of


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_results_are_those_of_one_process(commands, tmp_path, ranks):
    for command in commands("one"):
        assert main(command) == 0
    worker = Path(__file__).with_name("ranks_worker.py")
    job = launch(BIN / "torchrun", "--nproc-per-node", ranks, worker, json.dumps(commands("many")))
    output, errors = job.communicate(timeout=200)
    assert job.returncode == 0, errors
    assert len(files_of(tmp_path / "one-lists")) == 7
    for name in ("lists", "rows"):
        assert files_of(tmp_path / f"many-{name}") == files_of(tmp_path / f"one-{name}")
    for stage in (2, 3):
        one, many = (json.loads((tmp_path / f"{name}-{stage}.json").read_text()) for name in ("one", "many"))
        assert many.pop("metrics") == pytest.approx(one.pop("metrics"), abs=1e-9)
        assert many == one
    assert output.count("110 users in 6 parts") == 1
    assert errors.count("users have items in their history that are not in the catalogue") == 1


def recommend(stages, users: Path, out: Path, *options) -> list[str]:
    model = stages / "stage2" / "best"
    words = ("recommend", "--checkpoint", model, "--history", users, "--batch-size", 8, "--out", out, *options)
    return [str(word) for word in words]


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_the_next_start_repeats_no_finished_part(stages, tmp_path):
    users, out = write_users(tmp_path / "users.jsonl", 1600), tmp_path / "lists"
    command = recommend(stages, users, out, "--users-per-part", 40)
    job = launch(*TORCHRUN, "-m", "ugt_composer.cli.main", *command)
    deadline = time.monotonic() + 150
    while len(list(out.glob("part-*"))) < 4:
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ranks = psutil.Process(job.pid).children()
    next(rank for rank in ranks if rank.environ().get("RANK") == "1").send_signal(signal.SIGKILL)
    job.communicate(timeout=60)
    assert job.returncode != 0
    assert not (out / "index.json").exists()
    records = [json.loads(path.read_text()) for path in (out / ".progress").glob("part-*.json")]
    finished = {record["name"]: (out / record["name"]).stat().st_mtime_ns for record in records}
    assert 4 <= len(finished) < 40

    assert main(command) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
    assert main(recommend(stages, users, tmp_path / "uninterrupted", "--users-per-part", 40)) == 0
    assert files_of(out) == files_of(tmp_path / "uninterrupted")


def test_a_mistake_in_one_rank_s_users_ends_all_with_one_message(stages, tmp_path):
    users = write_users(tmp_path / "users.jsonl", 100)
    lines = users.read_text().splitlines()
    lines[35] = '{"items": "item-1"}'
    users.write_text("\n".join(lines))
    command = recommend(stages, users, tmp_path / "lists", "--users-per-part", 20)
    job = launch(BIN / "composer", "-n", "2", "-c", BIN / "ugt", *command)
    output, errors = job.communicate(timeout=200)
    assert job.returncode == 2, errors
    assert errors.count(f"error: {users}:36: items: found") == 1
    assert "users.jsonl:36" not in output
    assert "Traceback" not in errors + output


def test_a_command_for_one_process_is_refused_on_several(shop):
    job = launch(*TORCHRUN, "-m", "ugt_composer.cli.main", "inspect", shop / "train")
    output, errors = job.communicate(timeout=100)
    assert job.returncode != 0
    assert errors.count("error: ugt inspect is a single process, but was started as 2") == 1
    assert not output
