"""Runs the commands of a program that starts trainings. A signal to it is passed on, so that training saves before it
ends."""

import ctypes
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from ugt_composer.errors import EXIT_BAD_INPUT, EXIT_PREEMPTED, RunError, UserError
from ugt_composer.job.exit import PR_SET_PDEATHSIG
from ugt_composer.job.signals import SIGNALS

INTERVAL = 1.0  # seconds between two questions whether to end a command


class Preempted(Exception):
    """A command, or this process, received a signal: the same command resumes.

    Attributes:
        status: the command's exit status; EXIT_PREEMPTED if none was running, or if it was done in spite of the signal.
    """

    def __init__(self, status: int = EXIT_PREEMPTED):
        super().__init__(status)
        self.status = status


class Children:
    """Runs one command at a time. To be created in the main thread, before the first command."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._is_preempted = False
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def run(self, step: str, command: Sequence[str]) -> None:
        """
        Args:
            step: its name, for messages.

        Raises:
            Preempted: it ended with status 75, or a signal arrived.
            UserError, RunError: it failed, with the status of bad input, or another one.
        """
        shown = shlex.join([Path(command[0]).name, *command[1:]])
        print(f"{step}$ {shown}", file=sys.stderr, flush=True)
        status = self.exit_status(command)
        if status == EXIT_PREEMPTED:
            raise Preempted
        if status:
            problem = f"{step} failed with exit status {status}, see its message above; what is finished is kept"
            raise UserError(problem) if status == EXIT_BAD_INPUT else RunError(problem)

    def exit_status(
        self,
        command: Sequence[str],
        output: IO | None = None,
        is_enough: Callable[[], bool] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Runs a command to its end.

        Args:
            output: where it writes; None: where this process does.
            is_enough: asked every second, whether to end the command early: it is then sent SIGTERM.
            environment: its environment variables; None: those of this process.

        Returns:
            Its exit status; of a command that a signal killed, 128 and the signal's number, as in a shell.

        Raises:
            Preempted: a signal arrived, before the command or while it ran.
        """
        if self._is_preempted:
            raise Preempted
        # In a session of its own: Ctrl-C in a terminal reaches it once, through this process.
        self._process = process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        if self._is_preempted:  # the signal came while it started
            process.terminate()
        while is_enough is not None and _is_running_after(process, INTERVAL):
            if is_enough():
                process.terminate()
                break
        status = process.wait()
        self._process = None
        if status < 0:
            status = 128 - status
        if self._is_preempted:
            raise Preempted(status or EXIT_PREEMPTED)
        return status

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._is_preempted = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()


def _is_running_after(process: subprocess.Popen, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _end_with_parent() -> None:
    """In the child: Linux sends it SIGTERM if this process is killed, so that no training goes on unattended."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
