"""SIGTERM, SIGINT and SIGUSR1: warnings that the process will be preempted soon.

A thread receives them, because Python runs no signal handler while the main thread is blocked in a collective.
"""

import mmap
import os
import select
import signal
import threading
import time
from typing import Any

from ugt_composer.errors import EXIT_PREEMPTED
from ugt_composer.job.exit import a_rank_is_gone, first_end, leave, leave_after_another, note_end, say

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Seconds. A scheduler signals launcher and ranks, and the launcher signals the ranks again: this is one warning.
SAME_WARNING = 1.0
# The launcher and most schedulers kill at the end of the grace: the process must exit before that.
FRACTION_OF_GRACE = 0.95


class WarningSignals:
    """Receives warning signals and ends the process before the grace is over.

    Before training there is nothing to save: the process ends at once. During training the callback Preemption saves
    and ends it; this class ends it only if that takes longer than the grace, or at a second signal.

    Attributes:
        first_at: time.monotonic() of the first signal; None before it.
        training: whether a signal is left to the callback Preemption.
        grace: seconds from the first signal to the exit.
        leaving: the process is ending already; further signals, which the launcher sends, are ignored.
        standing: what is reported about the newest checkpoint if the grace runs out.
        unprepared: what is reported if there is nothing to save.
    """

    def __init__(self) -> None:
        self.first_at: float | None = None
        self.leaving = False
        self._training = mmap.mmap(-1, 1)  # one byte, which forked data workers read too
        self.grace = 30.0
        self.standing = "nothing was saved"
        self.unprepared = "preempted before the first batch; run the same command again to resume"
        self._handlers_before: dict[signal.Signals, Any] = {}
        self._write_end: int | None = None

    @property
    def training(self) -> bool:
        return self._training[0] == 1

    @training.setter
    def training(self, value: bool) -> None:
        self._training[0] = value

    @property
    def is_listening(self) -> bool:
        return self._write_end is not None

    def listen(self) -> None:
        """Takes the signals over from other handlers. Does nothing outside the main thread, as Python requires."""
        if threading.current_thread() is not threading.main_thread():
            return
        handlers_before = {number: signal.signal(number, _do_nothing) for number in SIGNALS}
        if self.is_listening:
            return  # called again, because importing Composer had replaced our handlers
        self._handlers_before = handlers_before
        read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read_end,), daemon=True, name="warning signals").start()

    def stop(self) -> None:
        """Restores the earlier handlers and forgets a signal that came."""
        if self._write_end is None:
            return
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        os.close(self._write_end)
        self._write_end, self.first_at, self.leaving = None, None, False

    def start_clock(self, age: float) -> None:
        """Starts the grace for a signal that another rank received `age` seconds ago."""
        if self.first_at is None:
            self.first_at = time.monotonic() - age
        if self._write_end is not None:
            os.write(self._write_end, bytes([0]))  # 0 is no signal: wakes the thread to compute its deadline again

    def _watch(self, read_end: int) -> None:
        poll = select.poll()  # select() fails where more than a thousand files are open
        poll.register(read_end, select.POLLIN)
        while True:
            first_at, timeout = self.first_at, None  # of poll, in milliseconds
            if first_at is not None:
                timeout = 1000 * max(0.0, first_at + FRACTION_OF_GRACE * self.grace - time.monotonic())
            if not poll.poll(timeout):
                self._give_up()
            numbers = os.read(read_end, 64)
            if not numbers:
                return os.close(read_end)
            for number in numbers:
                if number in SIGNALS:
                    self._note(number)

    def _note(self, number: int) -> None:
        if self.leaving:
            return
        if first_end() is not None or a_rank_is_gone():
            leave_after_another()
        if not self.training:
            self._say_and_leave(self.unprepared)
        if self.first_at is None:
            self.first_at = time.monotonic()
        elif time.monotonic() - self.first_at > SAME_WARNING:
            note_end(128 + number, f"a second signal ({signal.Signals(number).name})")
            leave(128 + number)

    def _give_up(self) -> None:
        self._say_and_leave(f"preempted: no time left to save; {self.standing}; run the same command again to resume")

    def _say_and_leave(self, sentence: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            say(sentence)
        note_end(EXIT_PREEMPTED, sentence)
        leave(EXIT_PREEMPTED)


def _do_nothing(number: int, frame: Any) -> None:
    """The thread handles the signal."""


def leave_signals_to_parent() -> None:
    """Makes a forked data worker ignore the signals, which terminals and schedulers send to all processes: the parent
    handles them and still needs its workers. After training SIGTERM ends a worker: this is how the parent ends it."""
    if warning.is_listening:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, lambda *_: None if warning.training else os._exit(0))
        for number in (signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)


warning = WarningSignals()  # one instance, because signals belong to the process
os.register_at_fork(after_in_child=leave_signals_to_parent)
