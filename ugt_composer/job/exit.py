"""How a job of several ranks ends: with the message and the exit status of the rank that ended first.

The `composer` launcher stops all ranks when one has ended, and exits with the status of the lowest failed rank, which
need not be the first that failed. Therefore the first rank to end writes a note (a file) for the other ranks of its
machine, and they exit with its message and status.
"""

import atexit
import contextlib
import ctypes
import functools
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ugt_composer.errors import EXIT_ERROR, RunError, UserError, exit_on_user_error, status_of
from ugt_composer.terminal import end_live_line

PR_SET_PDEATHSIG = 1  # option of Linux' prctl
NOTE_WAIT = 2.0  # seconds to wait for the note: a connection breaks a moment before the note is written
STARTED = time.time()  # about when this rank started: programs of several ranks import this module first
CLOSE_WAIT = 10.0  # seconds that a failed rank may take to close its files before it is killed
LOST_CONTACT = ("gloo", "Operation timed out!", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
# NCCL's messages for errors of another rank or of the network, not of this rank's own call.
NCCL_LOST_CONTACT = (
    "remote process exited or there was a network error",
    "ncclRemoteError",
    "unhandled system error",
    "ncclSystemError",
    "NCCL communicator was aborted",
    "Watchdog caught collective operation timeout",
)
LONGEST_DETAIL = 400  # characters of what NCCL says
PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class End:
    """How a rank ended: its exit status, and the reason in one line.

    Attributes:
        stalled: whether it ended because another rank or its GPU did not answer. The other ranks then log which line
            they are at.
    """

    rank: int
    status: int
    reason: str
    stalled: bool = False


def has_launcher() -> bool:
    return "LOCAL_RANK" in os.environ


def own_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def end_with_launcher() -> None:
    """Asks Linux to send this rank SIGTERM when its launcher is gone, for example killed by SIGKILL."""
    if not has_launcher():
        return
    launcher = _launcher()
    _forget_earlier_start()
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != launcher:  # the launcher ended before the call
        os.kill(os.getpid(), signal.SIGTERM)


@functools.cache
def _launcher() -> int:
    """The process that started this one. Cached at the start, because the parent id changes when the launcher ends."""
    return os.getppid()


@functools.cache
def _note_path() -> Path:
    """One file for all ranks of a launcher: a process id may be reused, but not with the same start time."""
    launcher, started = _launcher(), ""
    if sys.platform.startswith("linux"):
        started = Path(f"/proc/{launcher}/stat").read_text().rpartition(")")[2].split()[19]
    return Path(tempfile.gettempdir()) / f"ugt-end-{os.getuid()}-{launcher}-{started}.json"


def first_end() -> End | None:
    """How the first rank of this machine to end did so; None while all ranks run, or if it could not write its note."""
    if not has_launcher():
        return None
    try:
        if _note_path().stat().st_uid != os.getuid():
            return None
        return End(**json.loads(_note_path().read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _forget_earlier_start() -> None:
    """Deletes the note of an earlier start by the same parent: a script may start the ranks again under the same id."""
    with contextlib.suppress(OSError):
        if _note_path().stat().st_mtime < STARTED:
            _note_path().unlink()


def note_end(status: int, reason: str, stalled: bool = False) -> None:
    """Writes the note for the other ranks, unless another rank has written one."""
    if not has_launcher():
        return
    path = _note_path()
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        _forget_old_jobs(path)
        temporary.write_text(json.dumps(asdict(End(own_rank(), status, reason, stalled))), "utf-8")
        os.link(temporary, path)  # atomic, and never replaces the note of another rank
    except OSError:
        pass
    finally:
        temporary.unlink(missing_ok=True)


def _forget_old_jobs(path: Path) -> None:
    for other in path.parent.glob(f"ugt-end-{os.getuid()}-*.json"):
        try:
            os.kill(int(other.name.split("-")[3]), 0)
        except (ProcessLookupError, ValueError):
            other.unlink(missing_ok=True)
        except OSError:
            continue


def exit_as_rank(main: Callable[[], int | None]) -> NoReturn:
    """Runs `main` as a program that may be one rank of a job. A single process exits as in `exit_on_user_error`."""
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
        # The launcher signals ranks that are still running, and Python restores the default handlers before it exits.
        _ignore_signals()
    # Skips the rest of the interpreter's exit: tearing down PyTorch takes seconds of the grace, and the system frees
    # the memory anyway.
    atexit._run_exitfuncs()
    leave(status)


def _end_after(error: Exception) -> int:
    """Reports why this rank ends, and returns the exit status. Exits at once if another rank's end is the cause."""
    end_live_line()
    timed_out = has_timed_out(error)
    if lost_contact(error) and not timed_out:
        leave_after_another(_one_line(error) if "NCCL" in str(error) else None)
    status = status_of(error)
    if isinstance(error, UserError | RunError):
        reason = f"error: {error}"
        if not _first_rank_says(reason):
            print(reason, file=sys.stderr)
    elif timed_out:
        reason = (
            "error: another rank stalled: it did not answer within dist_timeout (dist_start_timeout before the first "
            "batch)"
        )
        print(f"rank {own_rank()}: {reason}\n{error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
        reason = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        if (advice := device_advice(error)) is not None:
            reason = f"error: {advice}"
            say(f"rank {own_rank()}: {reason}" if has_launcher() else reason)
    note_end(status, reason, timed_out)
    if timed_out:
        _wake_stopped_ranks()
    return status


def _first_rank_says(reason: str) -> bool:
    """Whether this machine's first rank ends with the same message, as when all ranks find the same mistake: then it is
    printed once. The other ranks wait a moment for its note."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        return False
    _ignore_signals()  # the launcher's, when the first rank has ended
    end = _wait_for_note()
    return end is not None and end.reason == reason


def _wait_for_note() -> End | None:
    deadline = time.monotonic() + NOTE_WAIT
    while (end := first_end()) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return end


def _ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def device_advice(error: BaseException) -> str | None:
    """What a user can do about an error of the GPU or of NCCL, in one sentence; None for any other error."""
    torch, text = sys.modules.get("torch"), _first_line(error)
    if torch is None or not isinstance(error, RuntimeError):
        return None
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"the GPU's memory is full ({text.removeprefix('CUDA out of memory. ')}); halve "
            "device_train_microbatch_size (in an evaluation device_eval_batch_size), set "
            "parallelism.activation_checkpointing=true, or shard with parallelism.strategy=fsdp"
        )
    if "NCCL" in text or isinstance(error, torch.distributed.DistBackendError):
        return f"NCCL failed ({_one_line(error)}); run the same command with NCCL_DEBUG=WARN to see why"
    if "CUDA error" in text:
        return (
            f"the GPU of {socket.gethostname()} failed ({text}); kernels run asynchronously: set "
            "CUDA_LAUNCH_BLOCKING=1 to see the call that failed; if it happens on one machine only, look "
            "for Xid errors in its dmesg"
        )
    return None


def _first_line(error: BaseException) -> str:
    return (str(error) or repr(error)).strip().splitlines()[0]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:LONGEST_DETAIL]


def leave_after_another(detail: str | None = None) -> NoReturn:
    """Ends this rank because another one is gone, with the reason and status from that rank's note, if there is one.

    Exits without cleanup: closing files and connections would wait for the rank that is gone.

    Args:
        detail: what this rank knows about the cause, reported if there is no note.
    """
    end = _wait_for_note()
    if end is None:
        say(f"rank {own_rank()} ends: another rank was killed or lost" + (f" ({detail})" if detail else ""))
    elif end.rank != own_rank():
        say(f"rank {end.rank} ended first: {end.reason}")
        if end.stalled:
            say(f"rank {own_rank()} is at {whereabouts()}")
    leave(EXIT_ERROR if end is None else end.status)


def end_stalled(reason: str) -> NoReturn:
    """Ends this rank from another thread, even if its main thread is blocked."""
    if first_end() is not None:
        leave_after_another()
    note_end(EXIT_ERROR, f"error: {reason}", stalled=True)
    say(f"rank {own_rank()}: error: {reason}")
    _wake_stopped_ranks()
    leave(EXIT_ERROR)


def whereabouts() -> str:
    """The line that the main thread is at, and the innermost line of this package in its call stack."""
    frame: FrameType | None = sys._current_frames()[threading.main_thread().ident or 0]
    places = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path != Path(__file__):
            places.append((path, f"{'/'.join(path.parts[-2:])}:{frame.f_lineno} ({frame.f_code.co_name})"))
        frame = frame.f_back
    in_package = next((place for path, place in places if PACKAGE in path.parents), None)
    innermost = places[0][1]
    return innermost if in_package in (None, innermost) else f"{innermost}, called by {in_package}"


def say(sentence: str) -> None:
    """Prints to stderr, and ignores errors if nobody reads it any more."""
    with contextlib.suppress(OSError, ValueError):
        end_live_line()
        print(sentence, file=sys.stderr, flush=True)


def leave(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def lost_contact(error: BaseException) -> bool:
    """Whether an error only means that another rank is gone or does not answer."""
    if not isinstance(error, RuntimeError):
        return isinstance(error, ConnectionError)
    torch, text = sys.modules.get("torch"), str(error)
    if torch is not None and isinstance(error, torch.distributed.DistBackendError):
        # NCCL raises it also for a wrong call of this rank or an error of its own GPU.
        return any(words in text for words in (*LOST_CONTACT, *NCCL_LOST_CONTACT))
    if torch is not None and isinstance(error, torch.distributed.DistError):
        return True
    return any(words in text for words in LOST_CONTACT)


def has_timed_out(error: BaseException) -> bool:
    return lost_contact(error) and any(words in str(error).lower() for words in ("timed out", "timeout"))


def a_rank_is_gone() -> bool:
    """Whether fewer ranks are running on this machine than the launcher started."""
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
    """Continues ranks that were stopped by SIGSTOP: the launcher would wait for them; once running, they exit too."""
    import psutil

    if os.getppid() == _launcher():
        for rank in psutil.Process(_launcher()).children():
            if rank.pid != os.getpid():
                rank.send_signal(signal.SIGCONT)


def _end_in(seconds: float, status: int) -> None:
    timer = threading.Timer(seconds, os._exit, (status,))
    timer.daemon = True
    timer.start()
