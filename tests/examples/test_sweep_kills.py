"""A sweep of real trainings: killed, resumed, one of them pruned; and its best trial repeated."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from tests.shop import ROOT, SMALL, comparable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_killed_sweep_resumes_its_trial_and_prunes_the_next(shop, tmp_path):
    out = tmp_path / "sweep"
    out.mkdir()
    storage = f"sqlite:///{out / 'study.db'}"
    study = optuna.create_study(study_name="sweep", storage=storage, direction="maximize")
    for learning_rate in ("1e-2", "1e-9"):
        study.enqueue_trial({"optimizer.lr": learning_rate})
    settings = [word for word in SMALL if not word.startswith(("optimizer.lr", "max_duration", "log_interval"))]
    settings += [f"data.catalogue={shop / 'catalogue.jsonl'}", f"data.train.local={shop / 'train'}"]
    settings += [f"data.eval.local={shop / 'eval'}", "max_duration=8ep", "log_interval=5ba"]
    words = ["optimizer.lr=choice(1e-2, 1e-9)", f"--out={out}", "--trials=2", "--unpruned=1"]
    command = [sys.executable, str(ROOT / "examples/sweep.py"), str(ROOT / "yamls/stage1.yaml"), *settings, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while not list((out / "trial-0").glob("ba*.pt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    trials = optuna.load_study(study_name="sweep", storage=storage).trials
    assert [one.state for one in trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    log = (out / "trial-0/log.txt").read_text()
    assert "a new run begins" in log
    assert "resumes after batch" in log
    assert list(trials[0].intermediate_values) == list(range(1, 13))  # 56 batches, and an evaluation at the end
    assert len(trials[1].intermediate_values) < 12

    repeated = shlex.split(done.stdout.splitlines()[-1])
    repeated[0] = str(Path(sys.executable).parent / repeated[0])
    subprocess.run([*repeated, f"save_folder={tmp_path / 'again'}"], env=environment, check=True, timeout=400)
    assert comparable(tmp_path / "again") == comparable(out / "trial-0")
