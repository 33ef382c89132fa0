"""Errors of the user's input or environment, not of the program: shown as one sentence, never as a traceback."""

import signal
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

EXIT_ERROR = 1
EXIT_BAD_INPUT = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again


class UserError(ValueError):
    """Bad config or bad input. The message names the file, line or key, what was found and what was expected."""


class RunError(RuntimeError):
    """A run cannot continue, for example on a full disk. The message is one sentence: why, and what is saved."""


def nearest(name: str, valid: list[str], prefix: str = "") -> str:
    """A hint for an unknown name: the nearest valid name if there is a similar one or one that abbreviates it (lr for
    learning_rate), else all valid names.

    Args:
        prefix: what the message writes before each valid name; it does not make names similar.
    """
    initials = "".join(word[:1] for word in name.split("_"))
    close = get_close_matches(name, valid, n=1, cutoff=0.6) or [one for one in valid if one == initials != name]
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return f"valid here: {', '.join(prefix + one for one in sorted(valid))}"


def where_searched(path: str | Path) -> str:
    """For a message about a file that is missing: the working directory, which a relative path depends on."""
    return "" if Path(path).is_absolute() else f" (working directory: {Path.cwd()})"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def exit_on_user_error(main: Callable[[], int | None]) -> NoReturn:
    """Runs `main` as a program. A UserError becomes one sentence on stderr and exit status 2; a RunError, 1."""
    try:
        sys.exit(main() or 0)
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(status_of(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        sys.exit(EXIT_ERROR)


def status_of(error: Exception) -> int:
    """The exit status that an error ends a program with."""
    return EXIT_BAD_INPUT if isinstance(error, UserError) else EXIT_ERROR
