"""What a program does that is interrupted while it writes: one sentence, and nothing is left behind."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def as_interrupt() -> Iterator[None]:
    """Raises KeyboardInterrupt, with the signal's number, for Ctrl-C and SIGTERM, so that no files are left behind.

    It is raised also if a library has turned it into an error of its own, as imports of compiled modules do.
    """
    arrived: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        arrived.append(number)
        raise KeyboardInterrupt(number)

    def unraisable(error: "sys.UnraisableHookArgs") -> None:
        if not issubclass(error.exc_type, KeyboardInterrupt):  # one that compiled code cannot pass on is not printed
            shown(error)

    shown, sys.unraisablehook = sys.unraisablehook, unraisable
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Exception:
        if arrived:
            raise KeyboardInterrupt(arrived[0]) from None
        raise
    finally:
        sys.unraisablehook = shown
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupted(interrupt: KeyboardInterrupt, out: str | Path | None) -> int:
    """Says that nothing was written to `out`, and returns the exit status: 128 and the number of the signal."""
    print("interrupted" if out is None else f"interrupted; nothing was written to {out}", file=sys.stderr)
    return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
