"""What a program shows of its progress on stderr: on a terminal one line that is updated in place, elsewhere complete
lines now and then, so that a log file does not fill up.

While there is such a line, other text goes through `print_line`, or `end_live_line` is called before it is printed.
"""

import contextlib
import math
import os
import sys
import time
from typing import TextIO

REDRAW_SECONDS = 0.1  # on a terminal
LINE_SECONDS = 60.0  # between two lines elsewhere: a job of hours writes some kilobytes
MOST_BLOCKS = 40  # width of a bar
ERASE_TO_END = "\x1b[K"


class LiveLine:
    """A line at the bottom of a terminal: text, a bar, text."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.text = ""
        self._drawn_at = 0.0

    def show(self, left: str, fraction: float, right: str, at_once: bool = False) -> None:
        """Draws the line, but at most once in REDRAW_SECONDS.

        Args:
            fraction: of the bar that is filled, 0 to 1.
        """
        global _live
        now = time.monotonic()
        if not at_once and now - self._drawn_at < REDRAW_SECONDS:
            return
        self._drawn_at = now
        columns = os.get_terminal_size(self.stream.fileno()).columns or 80  # 0: the terminal does not know
        blocks = min(MOST_BLOCKS, columns - len(left) - len(right) - 5)
        bar = f" |{_bar(fraction, blocks)}| " if blocks > 4 else "  "
        self.text = f"{left}{bar}{right}"[: columns - 1]
        _live = self
        self.draw()

    def draw(self) -> None:
        self._write(self.text)

    def clear(self) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            self.stream.write(f"\r{text}{ERASE_TO_END}")
            self.stream.flush()


_live: LiveLine | None = None  # the line that is on the terminal now


def _bar(fraction: float, width: int) -> str:
    filled = int(min(max(fraction, 0.0), 1.0) * width)
    return "█" * filled + "·" * (width - filled)


def print_line(text: str) -> None:
    """Prints to stderr, above the line that is updated in place. Nothing happens if nobody reads stderr any more."""
    if _live is not None:
        _live.clear()
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
    if _live is not None:
        _live.draw()


def end_live_line() -> None:
    """Removes the line that is updated in place, if there is one. It comes back when it is shown again."""
    global _live
    if _live is not None:
        _live.clear()
        _live = None


def live_line() -> LiveLine | None:
    """A line that is updated in place on stderr; None if that is no terminal."""
    try:
        is_terminal = sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()) is not None
    except (OSError, ValueError, AttributeError):  # closed, or of a notebook
        return None
    return LiveLine(sys.stderr) if is_terminal and os.environ.get("TERM") != "dumb" else None


def duration(seconds: float) -> str:
    """Such as 0:07, 12:30, 3:05:10."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(number: int, noun: str) -> str:
    """Such as 1 row, 2,000 rows, 3 batches."""
    plural = f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


class ProgressBar:
    """The progress of a loop over `total` things.

    Args:
        label: what the loop does, such as "evaluating".
        unit: what it counts, such as "rows".
        initial: how many were done by an earlier process.
        is_hidden: shows nothing, for all ranks but the first.
    """

    def __init__(self, label: str, total: int, unit: str, initial: int = 0, is_hidden: bool = False):
        self.label = label
        self.total = total
        self.unit = unit
        self.initial = self.done = initial
        self.is_hidden = is_hidden
        self._line = None if is_hidden else live_line()
        self._began = time.monotonic()
        self._shown_at = self._began if self._line is None else -math.inf

    def __enter__(self) -> "ProgressBar":
        self._show()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, number: int = 1) -> None:
        self.update_to(self.done + number)

    def update_to(self, done: int) -> None:
        self.done = done
        self._show()

    def close(self) -> None:
        if self._line is not None:
            end_live_line()

    def _show(self) -> None:
        if self.is_hidden:
            return
        now = time.monotonic()
        if now - self._shown_at < (LINE_SECONDS if self._line is None else REDRAW_SECONDS):
            return
        self._shown_at = now
        done = f"{self.label}: {self.done:,} of {self.total:,} {self.unit}"
        seconds, steps = now - self._began, self.done - self.initial
        speed = ""
        if steps > 0 and seconds > 0:
            left = (self.total - self.done) * seconds / steps
            speed = f"{steps / seconds:,.0f} {self.unit}/s, {duration(left)} left"
        if self._line is None:
            print_line(f"{done}, {speed}" if speed else done)
        else:
            self._line.show(done, self.done / self.total if self.total else 1.0, speed, at_once=True)
