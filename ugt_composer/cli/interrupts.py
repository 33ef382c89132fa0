"""What a program does that is interrupted while it writes: one sentence, and nothing is left behind."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Handles SIGTERM like Ctrl-C, so that no files are left behind."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupted(interrupt: KeyboardInterrupt, out: str | Path | None) -> int:
    """Says that nothing was written to `out`, and returns the exit status: 128 and the number of the signal."""
    print("interrupted" if out is None else f"interrupted; nothing was written to {out}", file=sys.stderr)
    return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
