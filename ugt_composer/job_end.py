"""How a job of several ranks ends: with the words and the exit status of the rank that ended first.

The `composer` launcher ends the other ranks when one has ended, and exits with the status of the lowest rank that
failed, whichever failed first. What that rank shows and exits with is therefore decided here: the first to end leaves
a note for the others of its machine.
"""

import atexit
import contextlib
import ctypes
import functools
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from ugt_composer.errors import EXIT_ERROR, RunError, UserError, exit_on_user_error, status_of

PR_SET_PDEATHSIG = 1  # of Linux' prctl
NOTE_WAIT = 2.0  # seconds: contact is lost a moment before the reason is known
STARTED = time.time()  # of this rank, nearly: this module is the first that a program of ranks loads
CLOSE_WAIT = 10.0  # seconds that a failed rank has to close its files, before it is ended where it stands
LOST_CONTACT = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


@dataclass(frozen=True)
class End:
    """How a rank ended: its exit status, and why in one line."""

    rank: int
    status: int
    reason: str


def has_launcher() -> bool:
    return "LOCAL_RANK" in os.environ


def own_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def end_with_launcher() -> None:
    """Asks Linux to warn this rank by SIGTERM when its launcher is gone, as when it was killed by SIGKILL."""
    if not has_launcher():
        return
    launcher = _launcher()
    _forget_earlier_start()
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != launcher:  # it went before the call
        os.kill(os.getpid(), signal.SIGTERM)


@functools.cache
def _launcher() -> int:
    """The process that started this one; asked for at the start, it stays the same when that one is gone."""
    return os.getppid()


@functools.cache
def _note_path() -> Path:
    """One file for all ranks of a launcher. A later one may get the same process number, but not the same time."""
    launcher, started = _launcher(), ""
    if sys.platform.startswith("linux"):
        started = Path(f"/proc/{launcher}/stat").read_text().rpartition(")")[2].split()[19]
    return Path(tempfile.gettempdir()) / f"ugt-end-{os.getuid()}-{launcher}-{started}.json"


def first_end() -> End | None:
    """How the first rank of this machine ended; None while all of them run, or where it could not say so."""
    if not has_launcher():
        return None
    try:
        if _note_path().stat().st_uid != os.getuid():
            return None
        return End(**json.loads(_note_path().read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _forget_earlier_start() -> None:
    """What starts the ranks may be a script that starts them again: same process, and so the same name of the note."""
    with contextlib.suppress(OSError):
        if _note_path().stat().st_mtime < STARTED:
            _note_path().unlink()


def note_end(status: int, reason: str) -> None:
    """Leaves word for the other ranks. Only the first one's counts."""
    if not has_launcher():
        return
    path = _note_path()
    own = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        _forget_old_jobs(path)
        own.write_text(json.dumps(asdict(End(own_rank(), status, reason))), "utf-8")
        os.link(own, path)  # whole or not at all, and never over another one's
    except OSError:
        pass
    finally:
        own.unlink(missing_ok=True)


def _forget_old_jobs(path: Path) -> None:
    for other in path.parent.glob(f"ugt-end-{os.getuid()}-*.json"):
        try:
            os.kill(int(other.name.split("-")[3]), 0)
        except (ProcessLookupError, ValueError):
            other.unlink(missing_ok=True)
        except OSError:
            continue


def exit_as_rank(main: Callable[[], int | None]) -> NoReturn:
    """Runs `main` as a program that may be one rank of a job. See `exit_on_user_error` for one that is alone."""
    try:
        if not has_launcher() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
            exit_on_user_error(main)
        status = main() or 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            say(end.code)
    except Exception as error:
        status = _end_after(error)
        _end_in(CLOSE_WAIT, status)
    finally:
        # The launcher hurries up whom it finds alive, and Python gives the signals back before it has ended.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
    # Taking PyTorch apart afterwards costs seconds of a grace, and frees what the system frees anyway.
    atexit._run_exitfuncs()
    leave(status)


def _end_after(error: Exception) -> int:
    """Says why this rank ends, unless another one's end is the reason: that one says it. Returns the exit status."""
    timed_out = has_timed_out(error)
    if lost_contact(error) and not timed_out:
        leave_after_another()
    status = status_of(error)
    if isinstance(error, UserError | RunError):
        reason = f"error: {error}"
        print(reason, file=sys.stderr)
    elif timed_out:
        reason = "error: another rank stalled: it did not answer within dist_timeout"
        print(f"rank {own_rank()}: {reason}\n{error}", file=sys.stderr)
    else:
        reason = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        traceback.print_exception(error)
    note_end(status, reason)
    if timed_out:
        _wake_stopped_ranks()
    return status


def leave_after_another() -> NoReturn:
    """Ends this rank because another one is gone, with that one's reason and status where it left them.

    At once: what closes files and connections in an orderly way would wait for the rank that is gone.
    """
    deadline = time.monotonic() + NOTE_WAIT
    while (end := first_end()) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if end is None:
        say(f"rank {own_rank()} ends: another rank was killed or lost")
    elif end.rank != own_rank():
        say(f"rank {end.rank} ended first: {end.reason}")
    leave(EXIT_ERROR if end is None else end.status)


def say(sentence: str) -> None:
    """To whoever still reads: an end that is nobody's to see is an end all the same."""
    with contextlib.suppress(OSError, ValueError):
        print(sentence, file=sys.stderr, flush=True)


def leave(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def lost_contact(error: BaseException) -> bool:
    """Whether an error only tells that another rank is gone or silent."""
    if not isinstance(error, RuntimeError):
        return isinstance(error, ConnectionError)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.distributed.DistError):
        return True
    return any(words in str(error) for words in LOST_CONTACT)


def has_timed_out(error: BaseException) -> bool:
    return lost_contact(error) and any(words in str(error).lower() for words in ("timed out", "timeout"))


def a_rank_is_gone() -> bool:
    """Whether the launcher has fewer ranks left on this machine than it started."""
    if not has_launcher() or os.getppid() != _launcher():
        return False
    import psutil

    try:
        ranks = psutil.Process(_launcher()).children()
        alive = [rank for rank in ranks if rank.status() != psutil.STATUS_ZOMBIE]
    except psutil.Error:
        return False
    return len(alive) < int(os.environ["LOCAL_WORLD_SIZE"])


def _wake_stopped_ranks() -> None:
    """A rank that was stopped from outside (SIGSTOP) would be waited for by the launcher; awake, it sees the end."""
    import psutil

    if os.getppid() == _launcher():
        for rank in psutil.Process(_launcher()).children():
            if rank.pid != os.getpid():
                rank.send_signal(signal.SIGCONT)


def _end_in(seconds: float, status: int) -> None:
    timer = threading.Timer(seconds, os._exit, (status,))
    timer.daemon = True
    timer.start()
