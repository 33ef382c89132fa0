"""SIGTERM, SIGINT and SIGUSR1: the machine will be taken away soon.

They are noted by a thread, because Python runs no handler while the main thread waits within a collective.
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
# A scheduler warns launcher and ranks together, and the launcher warns the ranks again: this is one warning.
SAME_WARNING = 1.0
# The launcher, and most schedulers, kill at the grace's end: this process has to be gone by then.
SHARE_OF_GRACE = 0.95


class WarningSignals:
    """What is known of a warning, and the clock that runs from it.

    Before training there is nothing to save: the process ends at once. In training the callback Preemption ends it,
    and this class only if that has not happened within the grace, or at a second signal.

    Attributes:
        first_at: when the first signal came, by time.monotonic(); None before.
        training: whether a signal is left to the callback.
        leaving: the process ends anyway; what the launcher sends to hurry it up is no second signal.
        standing: what is told of the newest checkpoint when the grace is over.
    """

    def __init__(self) -> None:
        self.first_at: float | None = None
        self.leaving = False
        self._training = mmap.mmap(-1, 1)  # one byte, which forked data workers read too
        self.grace = 30.0
        self.standing = "nothing was saved"
        self._before: dict[signal.Signals, Any] = {}
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
        """Takes the signals over, from other handlers too. In the main thread only: no other may."""
        if threading.current_thread() is not threading.main_thread():
            return
        before = {number: signal.signal(number, _do_nothing) for number in SIGNALS}
        if self.is_listening:
            return  # Composer's import had put its own handlers over ours
        self._before = before
        read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read_end,), daemon=True, name="warning signals").start()

    def stop(self) -> None:
        """Gives the signals back to the handlers before; what came until now is over."""
        if self._write_end is None:
            return
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._write_end)
        self._write_end, self.first_at, self.leaving = None, None, False

    def start_clock(self, age: float) -> None:
        """Counts a signal that came to another rank `age` seconds ago."""
        if self.first_at is None:
            self.first_at = time.monotonic() - age
        if self._write_end is not None:
            os.write(self._write_end, bytes([0]))  # no signal: the thread takes a new look at the clock

    def _watch(self, read_end: int) -> None:
        poll = select.poll()  # select() fails where more than a thousand files are open
        poll.register(read_end, select.POLLIN)
        while True:
            first_at, left = self.first_at, None
            if first_at is not None:
                left = 1000 * max(0.0, first_at + SHARE_OF_GRACE * self.grace - time.monotonic())
            if not poll.poll(left):
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
            self._say_and_leave("preempted before the first batch; run the same command again to go on")
        if self.first_at is None:
            self.first_at = time.monotonic()
        elif time.monotonic() - self.first_at > SAME_WARNING:
            note_end(128 + number, f"a second signal ({signal.Signals(number).name})")
            leave(128 + number)

    def _give_up(self) -> None:
        self._say_and_leave(f"preempted: no time left to save; {self.standing}; run the same command again to go on")

    def _say_and_leave(self, sentence: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            say(sentence)
        note_end(EXIT_PREEMPTED, sentence)
        leave(EXIT_PREEMPTED)


def _do_nothing(number: int, frame: Any) -> None:
    """The thread sees to it."""


def leave_signals_to_parent() -> None:
    """In a forked data worker: terminals and schedulers send signals to all processes, and the parent, which sees to
    them, still needs its workers. Once it trains no more SIGTERM ends them: that is how it ends them itself."""
    if warning.is_listening:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, lambda *_: None if warning.training else os._exit(0))
        for number in (signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)


warning = WarningSignals()  # signals belong to the process: there is one
os.register_at_fork(after_in_child=leave_signals_to_parent)
