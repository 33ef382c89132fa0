"""A killed or preempted run is one run in W&B and in MLflow, with each step once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shop import ROOT, stage_arguments
from tests.training.trackers.signal_at import signal_at
from tests.training.trackers.tracked import (
    comparable,
    expected,
    mlflow_run,
    mlflow_steps,
    offline_folders,
    wandb_steps,
)


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    env = os.environ | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)


def assert_each_step_once(save_folder: Path, uri: str) -> None:
    folders = offline_folders(save_folder)
    assert {folder.name.split("-")[-1] for folder in folders} == {(save_folder / "run_id").read_text()}
    steps = [step for folder in folders for step in wandb_steps(folder)]
    assert comparable(steps) == expected(save_folder)  # also their order, in which `wandb sync` joins the folders
    assert comparable(mlflow_steps(uri, mlflow_run(uri, save_folder))) == expected(save_folder, rename=True)


@pytest.mark.slow  # starts of a minute, most of it imports of W&B and MLflow
@pytest.mark.timeout(400)
def test_a_killed_run_continues_with_each_step_once(shop, tmp_path):
    uri, folder = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "run"
    arguments = [
        *stage_arguments(shop, folder, 1),
        *("save_interval=10ba", "max_duration=22ba", "loggers.wandb.project=p", f"loggers.mlflow.tracking_uri={uri}"),
        signal_at(19, signal.SIGKILL, tmp_path / "killed"),
    ]
    assert run(arguments).returncode == -signal.SIGKILL
    [first] = offline_folders(folder)
    assert 10 < wandb_steps(first)[-1][0] < 19  # W&B has steps that are repeated, and has lost others
    resumed = run(arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumes after batch 10" in resumed.stderr
    assert len(offline_folders(folder)) == 2
    assert_each_step_once(folder, uri)
    found = mlflow_run(uri, folder)
    assert found.info.status == "FINISHED"
    assert found.data.params["model.d_model"] == "32"
