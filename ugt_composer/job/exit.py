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

PR_SET_PDEATHSIG = 1  # of Linux' prctl
NOTE_WAIT = 2.0  # seconds: contact is lost a moment before the reason is known
STARTED = time.time()  # of this rank, nearly: this module is the first that a program of ranks loads
CLOSE_WAIT = 10.0  # seconds that a failed rank has to close its files, before it is ended where it stands
LOST_CONTACT = ("gloo", "Operation timed out!", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
# What NCCL says where the fault is another rank's or the network's, not an argument of this rank's call.
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
    """How a rank ended: its exit status, and why in one line.

    Attributes:
        stalled: whether it ended because another rank, which is to say where it stands, or its GPU did not answer.
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


def note_end(status: int, reason: str, stalled: bool = False) -> None:
    """Leaves word for the other ranks. Only the first one's counts."""
    if not has_launcher():
        return
    path = _note_path()
    own = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        _forget_old_jobs(path)
        own.write_text(json.dumps(asdict(End(own_rank(), status, reason, stalled))), "utf-8")
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
        leave_after_another(_one_line(error) if "NCCL" in str(error) else None)
    status = status_of(error)
    if isinstance(error, UserError | RunError):
        reason = f"error: {error}"
        print(reason, file=sys.stderr)
    elif timed_out:
        reason = (
            "error: another rank stalled: it did not answer within dist_timeout, or dist_start_timeout before the "
            "first batch"
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
        return f"NCCL failed ({_one_line(error)}); the same command with NCCL_DEBUG=WARN in its environment logs why"
    if "CUDA error" in text:
        return (
            f"the GPU of {socket.gethostname()} failed ({text}); kernels run later than their calls: "
            "CUDA_LAUNCH_BLOCKING=1 in the environment shows the call; if it comes on one machine only, look for its "
            "Xid errors in dmesg"
        )
    return None


def _first_line(error: BaseException) -> str:
    return (str(error) or repr(error)).strip().splitlines()[0]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:LONGEST_DETAIL]


def leave_after_another(detail: str | None = None) -> NoReturn:
    """Ends this rank because another one is gone, with that one's reason and status where it left them.

    At once: what closes files and connections in an orderly way would wait for the rank that is gone.

    Args:
        detail: what this rank knows of it, told where the other one left no reason.
    """
    deadline = time.monotonic() + NOTE_WAIT
    while (end := first_end()) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if end is None:
        say(f"rank {own_rank()} ends: another rank was killed or lost" + (f" ({detail})" if detail else ""))
    elif end.rank != own_rank():
        say(f"rank {end.rank} ended first: {end.reason}")
        if end.stalled:
            say(f"rank {own_rank()} stands in {whereabouts()}")
    leave(EXIT_ERROR if end is None else end.status)


def end_stalled(reason: str) -> NoReturn:
    """Ends this rank from a thread, whatever its main thread waits for."""
    if first_end() is not None:
        leave_after_another()
    note_end(EXIT_ERROR, f"error: {reason}", stalled=True)
    say(f"rank {own_rank()}: error: {reason}")
    _wake_stopped_ranks()
    leave(EXIT_ERROR)


def whereabouts() -> str:
    """The line at which the main thread is, and the line of this package that it came from."""
    frame: FrameType | None = sys._current_frames()[threading.main_thread().ident or 0]
    places = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path != Path(__file__):
            places.append((path, f"{'/'.join(path.parts[-2:])}:{frame.f_lineno} ({frame.f_code.co_name})"))
        frame = frame.f_back
    own = next((place for path, place in places if PACKAGE in path.parents), None)
    innermost = places[0][1]
    return innermost if own in (None, innermost) else f"{innermost}, called by {own}"


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
    torch, text = sys.modules.get("torch"), str(error)
    if torch is not None and isinstance(error, torch.distributed.DistBackendError):
        # NCCL's: also a wrong call of this rank, or an error of its own GPU.
        return any(words in text for words in (*LOST_CONTACT, *NCCL_LOST_CONTACT))
    if torch is not None and isinstance(error, torch.distributed.DistError):
        return True
    return any(words in text for words in LOST_CONTACT)


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
