"""MLflow: a run on a tracking server, or in a database or folder."""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from composer import Logger, State

from ugt_composer.config.load import flat_keys
from ugt_composer.config.schema import Config, MlflowConfig
from ugt_composer.errors import RunError, first_line
from ugt_composer.training.trackers.tracker import Line, Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log = logging.getLogger(__name__)
RUN_ID = "ugt.run_id"  # the tag by which a resumed run finds its run
CHANGED = "changed."  # the tags of parameters that are other than when the run began
MARK = "epoch"  # each line has it, and it is sent last: a step that has it is complete
MOST_METRICS, MOST_PARAMETERS, LONGEST_VALUE, LONGEST_NAME = 1000, 100, 6000, 250  # in a request of MLflow
RETRY = 15.0  # seconds from a failure to the next attempt
CLOSE_WAIT, PREEMPTED_WAIT = 15.0, 2.0  # seconds for the last steps when a run ends
# MLflow's own requests: its defaults, with which a call fails after many minutes, keep a run from ending.
REQUESTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


class MlflowTracker(Tracker):
    """Logs each line of metrics.jsonl at its batch as a step of MLflow.

    MLflow appends what it is sent, also a step that it has. So whenever this process connects, it reads which steps
    the run has, and sends the others. A thread sends; while the server does not answer, the lines wait.
    """

    def __init__(self, config: Config, settings: MlflowConfig):
        super().__init__(config)
        self.experiment = settings.experiment_name
        self.uri = settings.tracking_uri
        self.id = ""  # of the save folder
        self.run = ""  # MLflow's id of the run; empty while there is no connection
        self.client: MlflowClient | None = None
        self.failure: str | None = None  # why the last attempt failed
        self._steps: set[int] = set()  # that MLflow has, or will get
        self._waiting: list[tuple[int, Line]] = []  # lines to be sent, with their times in milliseconds
        self._status: str | None = None  # set at the end: MLflow's name for how the run ended
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def begin(self, run_id: str, lines: Sequence[Line], resumes: bool, is_finished: bool) -> None:
        self.has_ended = is_finished
        if self._thread is None:
            import mlflow

            for name, value in REQUESTS.items():
                os.environ.setdefault(name, value)
            self.id, self.uri = run_id, self.uri or mlflow.get_tracking_uri()
            try:
                self._connect()
            except Exception as error:  # MLflow raises many kinds
                if not resumes:
                    raise RunError(f"loggers.mlflow: {self.uri}: {_reason(error)}") from None
                self._fail(error)
            self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow")
            self._thread.start()
        for line in lines:
            self.send(line)

    def send(self, line: Line) -> None:
        with self._changed:
            if line["batch"] not in self._steps:
                self._steps.add(line["batch"])
                self._waiting.append((int(time.time() * 1000), line))
                self._changed.notify_all()

    def close(self, state: State, logger: Logger) -> None:
        if self._thread is None:
            return
        with self._changed:
            self._status = "FINISHED" if self.has_ended else "KILLED" if self.is_preempted else "FAILED"
            self._changed.notify_all()
        self._thread.join(PREEMPTED_WAIT if self.is_preempted else CLOSE_WAIT)
        with self._changed:
            if self._waiting:
                log.warning(
                    "loggers.mlflow: %s does not have %d steps%s; they are in metrics.jsonl, and the same command "
                    "sends them",
                    *(self.uri, len(self._waiting), f" ({self.failure})" if self.failure else ""),
                )
        self._thread = None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._status or not self.run)
                lines, status = list(self._waiting), self._status
            try:
                if not self.run:
                    self._connect()
                    continue
                for some in _requests(lines):
                    self._client.log_batch(self.run, metrics=[metric for line in some for metric in _metrics(*line)])
                    with self._changed:
                        del self._waiting[: len(some)]
                if status is not None:
                    self._client.set_terminated(self.run, status)
                    return
            except Exception as error:  # it must not end the thread
                self._fail(error)
                self._pause(status)

    def _pause(self, status: str | None) -> None:
        """Waits for the next attempt; when the run ends, there is one at once."""
        with self._changed:
            self._changed.wait_for(lambda: self._status != status, RETRY)

    @property
    def _client(self) -> "MlflowClient":
        assert self.client is not None
        return self.client

    def _fail(self, error: Exception) -> None:
        reason, self.run = _reason(error), ""
        if self.failure is None:
            log.warning(
                "loggers.mlflow: %s: %s; training continues, and the steps are sent when it answers", self.uri, reason
            )
        self.failure = reason

    def _connect(self) -> None:
        """Finds or creates the run, and removes the steps that it has from those that wait."""
        from mlflow import MlflowClient

        self.client = self.client or MlflowClient(self.uri)
        name = self.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        known = self.client.get_experiment_by_name(name)
        experiment = self.client.create_experiment(name) if known is None else known.experiment_id
        tagged = self.client.search_runs([experiment], f"tags.`{RUN_ID}` = '{self.id}'", max_results=1)
        run = tagged[0] if tagged else self.client.create_run(experiment, run_name=self.name, tags={RUN_ID: self.id})
        if run.info.status != "RUNNING" and not self.has_ended:
            self.client.update_run(run.info.run_id, status="RUNNING")
        self._log_parameters(run.info.run_id, run.data.params)
        steps = {metric.step for metric in self.client.get_metric_history(run.info.run_id, MARK)}
        with self._changed:
            self._steps |= steps
            self._waiting = [(time, line) for time, line in self._waiting if line["batch"] not in steps]
            self.run = run.info.run_id
        if self.failure is not None:
            log.warning("loggers.mlflow: %s answers again", self.uri)
            self.failure = None

    def _log_parameters(self, run: str, present: dict[str, str]) -> None:
        """The first value of each parameter, which MLflow does not change; and others as tags."""
        from mlflow.entities import Param, RunTag

        flat = flat_keys(self.settings) | self.hyperparameters
        values = {allowed_name(name)[:LONGEST_NAME]: _text(value) for name, value in flat.items()}
        new = [Param(name, value) for name, value in values.items() if name not in present]
        changed = [
            RunTag(f"{CHANGED}{name}"[:LONGEST_NAME], value)
            for name, value in values.items()
            if present.get(name, value) != value
        ]
        for start in range(0, max(len(new), len(changed)), MOST_PARAMETERS):
            some = slice(start, start + MOST_PARAMETERS)
            self._client.log_batch(run, params=new[some], tags=changed[some])


def allowed_name(name: str) -> str:
    """A name as MLflow takes it: `recall@10` as `recall_at_10`, any other unusual character as its number."""
    return re.sub(r"[^\w\-. /:]", lambda found: "_at_" if found[0] == "@" else f"_{ord(found[0])}_", name)


def _metrics(time: int, line: Line) -> list["Metric"]:
    from mlflow.entities import Metric

    values = {name: value for name, value in line.items() if name not in ("batch", MARK) and value is not None}
    values[MARK] = line[MARK]
    return [Metric(allowed_name(name), float(value), time, line["batch"]) for name, value in values.items()]


def _requests(lines: Iterable[tuple[int, Line]]) -> Iterator[list[tuple[int, Line]]]:
    """Cuts lines into lists that one request can hold. MLflow stores all metrics of a request, or none."""
    some: list[tuple[int, Line]] = []
    for line in lines:
        if some and sum(len(one) for _, one in [*some, line]) > MOST_METRICS:
            yield some
            some = []
        some.append(line)
    if some:
        yield some


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value, default=str))[:LONGEST_VALUE]


def _reason(error: Exception) -> str:
    return first_line(error)[:300]
