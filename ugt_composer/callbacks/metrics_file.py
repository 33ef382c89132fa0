"""metrics.jsonl: the run's record, one JSON object a logged step."""

import json
import math
from pathlib import Path
from typing import Any

from composer import Logger, State
from composer.loggers import LoggerDestination
from composer.utils import dist

from ugt_composer.checkpoint.saving import saving_into
from ugt_composer.intervals import Every

FILE_NAME = "metrics.jsonl"
RECORDED = ("loss/", "metrics/", "memory/")


class MetricsFile(LoggerDestination):
    """Appends a line for each batch that is due, with its evaluation in the same line where there was one.

    A resumed run first drops the lines past its checkpoint, so that each step is in the file once. An evaluation
    metric that no row counted for is left out; a training value that is not finite is null.
    """

    def __init__(self, save_folder: str, log_interval: str):
        self.path = Path(save_folder) / FILE_NAME
        self.every = Every(log_interval)
        self.values: dict[str, Any] = {}
        self.evaluation: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """What the file lacks of the batch: something only where a run is left within an evaluation."""
        return {"values": {name: float(value) for name, value in self.values.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = dict(state["values"])

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            if name.startswith("metrics/eval/"):
                self.evaluation[name] = value
            elif name.startswith(RECORDED):
                self.values[name] = value

    def fit_start(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() == 0:
            with saving_into(self.path.parent):
                drop_lines_after(self.path, state.timestamp.batch.value)

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        self.evaluation = {}  # an evaluation by hand is no step of the run

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        due = self.every.is_due(state) or state.timestamp.batch.value == 1
        if (due or self.evaluation) and dist.get_global_rank() == 0:
            self._write(state, self.values if due else {})
        self.values, self.evaluation = {}, {}

    def _write(self, state: State, values: dict[str, Any]) -> None:
        evaluation = {name: float(value) for name, value in self.evaluation.items()}
        line = {
            "batch": state.timestamp.batch.value,
            "epoch": state.timestamp.epoch.value,
            **{name: _finite(float(value)) for name, value in values.items()},
            **{name: value for name, value in evaluation.items() if math.isfinite(value)},
        }
        with saving_into(self.path.parent), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def drop_lines_after(path: Path, batch: int) -> None:
    """Keeps the whole lines up to `batch`; a line cut short by a kill goes too."""
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
