"""metrics.jsonl: the run's metrics, one JSON object per logged step."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from composer import Logger, State
from composer.loggers import LoggerDestination
from composer.utils import dist

from ugt_composer.checkpoint.rank0_errors import save_on_rank_0, saving_into
from ugt_composer.checkpoint.save_folder import METRICS
from ugt_composer.training.best_metric import PREFIX
from ugt_composer.training.intervals import Every
from ugt_composer.training.trackers.run_id import run_id
from ugt_composer.training.trackers.tracker import Tracker

OMITTED = ("trainer/", "time/")  # Composer's own values, which are in the line already or never change


class MetricsFile(LoggerDestination):
    """Appends a line for each batch that is due. If the batch was evaluated, the metrics are in the same line.

    A batch's line is written after its checkpoint, and a run may be killed between the two. So the checkpoint has the
    values of the line: a resumed run removes that line and all later ones and writes it again, so that each step is
    in the file once. An evaluation metric that no row counts for is omitted; a training value that is not finite is
    null.

    Args:
        trackers: get each line when it is written, and those that a resumed run begins with.
    """

    def __init__(self, save_folder: str, log_interval: str, trackers: Sequence[Tracker] = ()):
        self.path = Path(save_folder) / METRICS
        self.every = Every(log_interval)
        self.trackers = trackers
        self.values: dict[str, Any] = {}
        self.evaluation: dict[str, Any] = {}
        self.place = {"batch": 0, "epoch": 0}
        self.is_due = self.in_evaluation = False
        self.is_resumed = False  # from a checkpoint of this folder

    def state_dict(self) -> dict[str, Any]:
        """The values of the batch's line, if it is not in the file yet."""
        return {
            "values": {name: float(value) for name, value in self.values.items()},
            "evaluation": {name: float(value) for name, value in self.evaluation.items()},
            "place": self.place,
            "is_due": self.is_due,
            "in_evaluation": self.in_evaluation,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values, self.evaluation, self.place = (dict(state[name]) for name in ("values", "evaluation", "place"))
        self.is_due, self.in_evaluation = state["is_due"], state["in_evaluation"]

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        sort_metrics(metrics, self.values, self.evaluation)

    def continue_from(self, batch: int, is_finished: bool = False) -> None:
        """Makes the file end with the line of `batch`, before the run's next batch, and begins the trackers."""
        lacks_line = self.is_resumed and (self.is_due or bool(self.evaluation) or self.in_evaluation)
        is_new = batch == 0 and not self.is_resumed  # a killed run without a checkpoint may have left lines
        if dist.get_global_rank() == 0:
            with saving_into(self.path.parent):
                drop_lines_after(self.path, batch - 1 if lacks_line or is_new else batch)
        if self.trackers:
            self._begin_trackers(resumes=batch > 0 or self.is_resumed, is_finished=is_finished)
        if not self.in_evaluation:  # otherwise the evaluation is repeated, and the line written after it
            if lacks_line:
                self._end_batch()
            self.values, self.evaluation, self.is_due = {}, {}, False
        self.in_evaluation = self.is_resumed = False

    def _begin_trackers(self, resumes: bool, is_finished: bool) -> None:
        identity = run_id(str(self.path.parent))

        def begin() -> None:
            lines = [json.loads(line) for line in self.path.read_text("utf-8").splitlines()] if resumes else []
            for tracker in self.trackers:
                tracker.begin(identity, lines, resumes, is_finished)

        save_on_rank_0(self.path.parent, begin)

    def batch_end(self, state: State, logger: Logger) -> None:
        self.place = {"batch": state.timestamp.batch.value, "epoch": state.timestamp.epoch.value}
        self.is_due = self.every.is_logged(state)

    def eval_before_all(self, state: State, logger: Logger) -> None:
        self.in_evaluation = True

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self.in_evaluation = False

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        self.evaluation = {}  # an evaluation outside training is not a step of the run

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        self._end_batch()

    def _end_batch(self) -> None:
        if (self.is_due or self.evaluation) and dist.get_global_rank() == 0:
            self._write(self.values if self.is_due else {})
        self.values, self.evaluation, self.is_due = {}, {}, False

    def _write(self, values: dict[str, Any]) -> None:
        evaluation = {name: float(value) for name, value in self.evaluation.items()}
        line = {
            **self.place,
            **{name: _finite(float(value)) for name, value in values.items()},
            **{name: value for name, value in evaluation.items() if math.isfinite(value)},
        }
        with saving_into(self.path.parent), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for tracker in self.trackers:
            tracker.send(line)


def sort_metrics(metrics: dict[str, Any], values: dict[str, Any], evaluation: dict[str, Any]) -> None:
    """Adds what Composer logs to the values of the step, and to those of the evaluation."""
    for name, value in metrics.items():
        if name.startswith(PREFIX):
            evaluation[name] = value
        elif not name.startswith(OMITTED):
            values[name] = value


def drop_lines_after(path: Path, batch: int) -> None:
    """Keeps the complete lines up to `batch`; a line that a kill cut short is removed too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            if json.loads(line)["batch"] <= batch:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), "utf-8")
    temporary.replace(path)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
