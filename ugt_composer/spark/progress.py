"""The progress of Spark's jobs: the fraction of a job's tasks that are finished, on a terminal only."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

REFRESH_SECONDS = 0.2
WAIT_SECONDS = 20.0  # without an executor, before that is said


@contextmanager
def job_progress(session: "SparkSession", text: str) -> Iterator[None]:
    """Shows a bar of the tasks that are finished, of all jobs that run in the block in this thread or others.

    Also warns, on a terminal or not, if no task starts for WAIT_SECONDS: Spark waits for executors as long as it takes.
    """
    end = threading.Event()
    thread = threading.Thread(target=_follow, args=(session, text, end), daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _follow(session: "SparkSession", text: str, end: threading.Event) -> None:
    tracker = session.sparkContext.statusTracker()
    stages: dict[int, tuple[int, int]] = {}  # finished and all tasks of each stage seen so far
    waiting_since: float | None = time.monotonic()
    with tqdm(unit=" tasks", desc=text, disable=None, leave=False, total=0) as bar:
        while not end.wait(REFRESH_SECONDS):
            try:
                infos = [info for stage in tracker.getActiveStageIds() if (info := tracker.getStageInfo(stage))]
            except Exception:  # Spark has stopped; the jobs themselves say why
                return
            running = 0
            for info in infos:
                stages[info.stageId] = (info.numCompletedTasks, info.numTasks)
                running += info.numActiveTasks
            active = {info.stageId for info in infos}
            stages |= {stage: (total, total) for stage, (_, total) in stages.items() if stage not in active}
            bar.total = sum(total for _, total in stages.values())
            bar.update(sum(done for done, _ in stages.values()) - bar.n)
            if not infos or running:
                waiting_since = None if running else time.monotonic()
            elif waiting_since is not None and time.monotonic() - waiting_since > WAIT_SECONDS:
                tqdm.write(
                    f"waiting for Spark's executors: {session.sparkContext.master} has given none yet; are its workers "
                    "running, with free cores and memory?",
                    file=sys.stderr,
                )
                waiting_since = None
