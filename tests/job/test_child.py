import os
import signal
import sys
import threading
import time

import pytest

from ugt_composer.errors import RunError, UserError
from ugt_composer.job import child
from ugt_composer.job.child import Children, Preempted
from ugt_composer.job.signals import SIGNALS


@pytest.fixture
def children():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield Children()
    for number, handler in before.items():
        signal.signal(number, handler)


def python(code):
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(("status", "error"), [(1, RunError), (2, UserError), (75, Preempted)])
def test_an_exit_status_becomes_the_error_of_the_same_meaning(children, status, error):
    children.run("step", python("pass"))
    with pytest.raises(error) as raised:
        children.run("step", python(f"raise SystemExit({status})"))
    if error is not Preempted:
        assert f"step failed with exit status {status}" in str(raised.value)


def test_a_signal_is_passed_on_and_no_further_command_runs(children, tmp_path):
    waits = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('saved').touch(), sys.exit(75)))\n"
        "pathlib.Path('started').touch()\n"
        "time.sleep(60)\n"
    )

    def send():
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(Preempted):
        children.run("step", python(f"import os; os.chdir({str(tmp_path)!r})\n{waits}"))
    sender.join()
    assert (tmp_path / "saved").exists()
    with pytest.raises(Preempted):
        children.run("step", python(f"open({str(tmp_path / 'ran')!r}, 'w')"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("at_sigterm", "status"), [("signal.SIG_DFL", 143), ("lambda *_: sys.exit(0)", 75)])
def test_a_signal_reports_the_status_of_the_command_that_it_ended(children, tmp_path, at_sigterm, status):
    started = tmp_path / "started"

    def send():
        while not started.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    waits = f"import signal, sys, time\nsignal.signal(signal.SIGTERM, {at_sigterm})\nopen({str(started)!r}, 'w')\n"
    with pytest.raises(Preempted) as raised:
        children.exit_status(python(f"{waits}time.sleep(60)"))
    sender.join()
    assert raised.value.status == status


def test_a_command_that_is_enough_is_ended_by_sigterm_with_its_output_in_a_file(children, tmp_path, monkeypatch):
    monkeypatch.setattr(child, "INTERVAL", 0.01)
    output = tmp_path / "output"
    waits = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "print('begins', flush=True)\n"
        "time.sleep(60)\n"
    )
    with output.open("wb") as file:
        assert children.exit_status(python(waits), file, lambda: output.stat().st_size > 0) == 75
        assert children.exit_status(python("print('ends by itself')"), file, lambda: False) == 0
    assert output.read_text() == "begins\nends by itself\n"
