"""Counts where the host waits for the GPU, by phase of the run."""

import functools
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from composer import Callback, Event, Logger, State

ROOT = Path(__file__).resolve().parents[2]
STEP, SAVE, BEFORE_EVALUATION, EVALUATION, AFTER_EVALUATION = (
    "step",
    "save",
    "before evaluation",
    "evaluation",
    "after evaluation",
)
PHASES = {
    Event.BEFORE_DATALOADER: STEP,
    Event.BATCH_CHECKPOINT: SAVE,
    Event.EVAL_BEFORE_ALL: BEFORE_EVALUATION,
    Event.EVAL_BATCH_START: EVALUATION,
    Event.EVAL_BATCH_END: AFTER_EVALUATION,  # of the last batch, which may be any batch so far
}


class HostWaits(Callback):
    """Counts host waits while `watch` is on. Must be the first callback, so that what other callbacks do at an event
    belongs to the phase that the event starts.

    PyTorch warns about copies to the host, operations whose result's size the host must know, and
    `Stream.synchronize`, but not about `torch.cuda.synchronize` and `Event.synchronize`, which are wrapped here.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, int, str]] = Counter()  # phase, batch from 1, place
        self.clear()

    def clear(self) -> None:
        self.counts.clear()
        self.phase, self.batch = "build", 0

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        if event not in PHASES:
            return
        self.phase, self.batch = PHASES[event], state.timestamp.batch.value + (event == Event.BEFORE_DATALOADER)

    def watch(self) -> None:
        warnings.simplefilter("always")
        warnings.showwarning = self._note_warning  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        for owner in (torch.cuda, torch.cuda.Event):
            owner.synchronize = self._noting(owner.synchronize)  # type: ignore[attr-defined]

    def _note_warning(self, message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchronizing CUDA" in str(message):
            self._note(sys._getframe(1))

    def _noting(self, synchronize: Any) -> Any:
        @functools.wraps(synchronize)
        def noting(*args: Any, **kwargs: Any) -> Any:
            self._note(sys._getframe(1))
            return synchronize(*args, **kwargs)

        return noting

    def _note(self, frame: FrameType | None) -> None:
        """Notes the innermost line of the call stack, and the innermost one of the package."""
        while frame is not None and frame.f_code.co_filename == warnings.__file__:
            frame = frame.f_back
        places = [_place(frame)] if frame is not None else []
        while frame is not None and "/ugt_composer/" not in frame.f_code.co_filename:
            frame = frame.f_back
        if frame is not None:
            places.append(_place(frame))
        self.counts[self.phase, self.batch, " from ".join(dict.fromkeys(places))] += 1


def _place(frame: FrameType) -> str:
    file = frame.f_code.co_filename.split("site-packages/")[-1].removeprefix(f"{ROOT}/")
    return f"{file}:{frame.f_lineno}"
