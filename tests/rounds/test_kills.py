"""Rounds as processes: killed at several moments and run again, they end with the results of an uninterrupted run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.shop import ROOT, SMALL
from ugt_composer.errors import EXIT_PREEMPTED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def start(shop, stages):
    """start(folder) → the process that runs two rounds there."""

    def run(folder):
        training = [*SMALL, f"data.catalogue={shop / 'catalogue.jsonl'}", "save_interval=1ba"]
        training += ["max_duration=5ba", "eval_interval=5ba", "optimizer.lr=1e-4"]
        words = [
            f"save_folder={folder}",
            f"init_from={stages / 'stage2/best'}",
            f"data=[{shop / 'train'}]",
            f"validation=[{shop / 'eval'}]",
            f"stage=[{ROOT / 'yamls/stage3.yaml'}]",
            f"overrides={json.dumps(training)}",
            "rounds=2",
            "preferences.limit=100",
        ]
        command = [sys.executable, str(ROOT / "rounds.py"), str(ROOT / "yamls/rounds.yaml"), *words]
        with (folder.parent / "output.txt").open("w") as output:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)

    return run


def wait_for(process, *paths):
    while not any(path.exists() for path in paths):
        assert process.poll() is None
        time.sleep(0.02)


def finished(folder):
    return json.loads((folder / "state.json").read_text())["finished"]


def test_rounds_that_are_killed_resume_to_the_same_results(start, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    process = start(whole)
    assert process.wait(800) == 0

    process = start(folder)
    wait_for(process, folder / "round-1/run/ba00000002.pt", folder / "round-1/run/ba00000003.pt")
    process.send_signal(signal.SIGTERM)
    assert process.wait(200) == EXIT_PREEMPTED
    assert finished(folder) == ["start/evaluation", "round-1/preferences"]
    made = {path: path.stat().st_mtime_ns for path in (folder / "round-1/preferences").iterdir()}

    process = start(folder)
    wait_for(process, folder / "round-1/evaluation.json")
    process.kill()
    process.wait(200)

    process = start(folder)
    assert process.wait(800) == 0
    assert made == {path: path.stat().st_mtime_ns for path in (folder / "round-1/preferences").iterdir()}
    tables = [json.loads((one / "rounds.json").read_text()) for one in (whole, folder)]
    for table in tables:
        for one in table:
            one["model"] = Path(one["model"]).name
    assert tables[0] == tables[1]
    assert finished(whole) == finished(folder)
    weights = [load_file(one / "best/model.safetensors") for one in (whole, folder)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
