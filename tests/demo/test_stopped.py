"""A demo that is stopped while a command of it runs, with real signals; a script stands in for the command."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.shop import ROOT

SAVES = f"""#!{sys.executable}
import os, pathlib, signal, sys, time

def save(*_):
    time.sleep(0.5)
    pathlib.Path("saved").touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, save)
pathlib.Path("child").write_text(str(os.getpid()))
pathlib.Path("started").touch()
time.sleep(60)
"""
DEMO = """
from ugt_composer.cli import main
from ugt_composer.demo import run

run.program = lambda name: "./command"
main.run()
"""


@pytest.mark.parametrize(
    ("words", "number", "to_group"),
    [
        (["--out", "my demo"], signal.SIGTERM, False),
        (["--law", "signals"], signal.SIGINT, True),  # Ctrl-C in a terminal
    ],
)
def test_a_stopped_demo_waits_until_its_training_has_saved(tmp_path, words, number, to_group):
    (tmp_path / "command").write_text(SAVES)
    (tmp_path / "command").chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", DEMO, "demo", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not (tmp_path / "started").exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        (os.killpg if to_group else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (tmp_path / "saved").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "child").read_text()), 0)
    assert process.returncode == 75
    shown = " ".join(["ugt demo", *words]).replace("my demo", "'my demo'")
    assert errors == f"preempted; `{shown}` resumes\n"
