"""events.jsonl: when a run started, saved, was preempted and resumed. One JSON object per line, only ever appended to.

    {"time": "2026-11-28T13:07:25.120+00:00", "event": "checkpoint", "batch": 400, "rows": 102400, "seconds": 0.8}

`time` is UTC, `batch` and `rows` are what the run had trained on by then. A process that is killed writes no event for
it: the next "resume" shows that it happened. `ugt report` draws the events.
"""

import json
import logging
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ugt_composer.checkpoint.save_folder import EVENTS

log = logging.getLogger(__name__)
START, RESUME, CHECKPOINT, BEST = "start", "resume", "checkpoint", "best"
PREEMPTED, FAILED, END = "preempted", "failed", "end"


class RunEvents:
    """Appends events. A run does not end because an event cannot be written: that is logged once.

    Args:
        folder: the save folder.
        writes: whether this process writes; False on all ranks but the first.
    """

    def __init__(self, folder: Path, writes: bool):
        self.path = folder / EVENTS
        self.writes = writes
        self._lock = threading.Lock()  # checkpoints are written by a thread of their own
        self._is_warned = False

    def add(self, event: str, batch: int, **facts: Any) -> None:
        """
        Args:
            event: one of the names above.
            batch: batches trained so far.
            facts: other keys of the line.
        """
        if not self.writes:
            return
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "event": event, "batch": batch, **facts}, ensure_ascii=False)
        try:
            with self._lock, self.path.open("ab+") as file:
                # A line that a kill cut short stays a line of its own, which a reader skips.
                is_cut = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
                file.write((b"\n" if is_cut else b"") + line.encode() + b"\n")
        except OSError as error:
            if not self._is_warned:
                self._is_warned = True
                log.warning("%s cannot be written (%s); ugt report will not show when this run saved", self.path, error)
