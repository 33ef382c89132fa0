"""A killed or preempted run is one run in W&B and in MLflow, with each step once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parallelism.test_nodes import free_port, node, start, wait
from tests.shop import ROOT, stage_arguments
from tests.training.trackers.mlflow_server import mlflow_server
from tests.training.trackers.signal_at import signal_at
from tests.training.trackers.tracked import (
    comparable,
    expected,
    mlflow_run,
    mlflow_steps,
    offline_folders,
    wandb_steps,
)
from ugt_composer.errors import EXIT_PREEMPTED


def run(arguments: list[str], ranks: int = 1) -> subprocess.CompletedProcess:
    launcher = [sys.executable] if ranks == 1 else [str(Path(sys.executable).parent / "composer"), "-n", str(ranks)]
    command = [*launcher, str(ROOT / "train.py"), *arguments]
    env = os.environ | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
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
        *("save_interval=8ba", "max_duration=18ba", "loggers.wandb.project=p", f"loggers.mlflow.tracking_uri={uri}"),
        signal_at(15, signal.SIGKILL, tmp_path / "killed"),
    ]
    assert run(arguments).returncode == -signal.SIGKILL
    [first] = offline_folders(folder)
    assert 8 < wandb_steps(first)[-1][0] < 15  # W&B has steps that are repeated, and has lost others
    resumed = run(arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumes after batch 8" in resumed.stderr
    assert len(offline_folders(folder)) == 2
    assert_each_step_once(folder, uri)
    found = mlflow_run(uri, folder)
    assert found.info.status == "FINISHED"
    assert found.data.params["model.d_model"] == "32"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_are_one_run_on_a_server_which_knows_of_the_preemption(shop, tmp_path):
    port, folder = free_port(), tmp_path / "run"
    uri = f"http://127.0.0.1:{port}"
    arguments = [
        *stage_arguments(shop, folder, 1),
        *("max_duration=12ba", "loggers.wandb.project=p", f"loggers.mlflow.tracking_uri={uri}"),
        signal_at(7, signal.SIGTERM, tmp_path / "preempted"),
    ]
    with mlflow_server(tmp_path, port):
        preempted = run(arguments, ranks=2)
        assert preempted.returncode == EXIT_PREEMPTED, preempted.stderr
        assert_each_step_once(folder, uri)
        assert len(offline_folders(folder)) == 1
        assert mlflow_run(uri, folder).info.status == "KILLED"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_machines_without_a_shared_folder_are_one_run(shop, tmp_path, monkeypatch):
    """The first machine is preempted; both start again."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    uri, first, second = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "first/run", tmp_path / "second/run"
    keys = ["max_duration=12ba", "loggers.wandb.project=p", f"loggers.mlflow.tracking_uri={uri}"]

    def job(*more: str) -> list[int]:
        port = free_port()
        machines = [
            start(node(rank, port), [*stage_arguments(shop, folder, 1), *keys, *more])
            for rank, folder in enumerate((first, second))
        ]
        errors = wait(machines, 400)
        assert all("Traceback" not in error for error in errors), errors
        return [machine.returncode for machine in machines]

    assert job(signal_at(7, signal.SIGTERM, tmp_path / "preempted")) == [EXIT_PREEMPTED, EXIT_PREEMPTED]
    assert job() == [0, 0]
    assert_each_step_once(first, uri)
    assert mlflow_run(uri, first).info.status == "FINISHED"
    assert not second.exists() or not [path.name for path in second.iterdir() if path.name in ("wandb", "run_id")]
