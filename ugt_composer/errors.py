"""Errors that are the user's to mend: shown as one sentence, never as a traceback."""

import os
import signal
import sys
import time
from collections.abc import Callable
from difflib import get_close_matches

EXIT_ERROR = 1
EXIT_BAD_INPUT = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again
RANK_0_FIRST = 10.0  # seconds


class UserError(ValueError):
    """Bad config or bad input. The message names the file, line or key, what was found and what was expected."""


def nearest(name: str, valid: list[str]) -> str:
    """A hint for an unknown name: the nearest valid one if any is near, else all of them."""
    close = get_close_matches(name, valid, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"valid here: {', '.join(sorted(valid))}"


def exit_on_user_error(main: Callable[[], int | None]) -> None:
    """Runs `main` as a program: a UserError becomes one sentence on stderr and exit status 2."""
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if int(os.environ.get("RANK", "0")) > 0:
            # Rank 0 makes the same mistake and tells it; a launcher that saw this rank end first would kill it before.
            time.sleep(RANK_0_FIRST)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        sys.exit(EXIT_ERROR)
