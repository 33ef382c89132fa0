"""What W&B and MLflow have in common: they get the lines of metrics.jsonl."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from composer import Logger, State
from composer.loggers import LoggerDestination
from omegaconf import OmegaConf

from ugt_composer.config.load import config_yaml
from ugt_composer.config.schema import Config
from ugt_composer.job.signals import warning

Line = Mapping[str, Any]  # of metrics.jsonl: "batch", "epoch" and the values by their names


class Tracker(LoggerDestination):
    """An experiment tracker that is given the lines of metrics.jsonl, on rank 0 only.

    metrics.jsonl has each step once, also in a run that was killed and resumed. A tracker cannot delete what it has, so
    `begin` finds out which steps it has, and sends those that it lacks.
    """

    def __init__(self, config: Config):
        self.name = config.run_name
        self.settings: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(config_yaml(config)))  # type: ignore
        del self.settings["loggers"]  # a tracker's URI may contain a password
        self.hyperparameters: dict[str, Any] = {}  # Composer's own
        self.has_ended = False  # the training, and not by an error or a preemption

    @abstractmethod
    def begin(self, run_id: str, lines: Sequence[Line], resumes: bool, is_finished: bool) -> None:
        """Called before the first batch, and again if `fit` is called again.

        Args:
            run_id: the same whenever the run is resumed.
            lines: of metrics.jsonl, up to the batch that the run resumes after.
            resumes: a tracker that does not answer is an error for a new run, and a warning for a resumed one.
            is_finished: there is no batch left to train.

        Raises:
            UserError, RunError: the tracker cannot be used.
        """

    @abstractmethod
    def send(self, line: Line) -> None:
        """Takes a new line. Does not wait for the tracker, and raises no error."""

    def log_hyperparameters(self, hyperparameters: dict[str, Any]) -> None:
        self.hyperparameters |= hyperparameters

    def fit_start(self, state: State, logger: Logger) -> None:
        self.has_ended = False

    def fit_end(self, state: State, logger: Logger) -> None:
        self.has_ended = True

    @property
    def is_preempted(self) -> bool:
        return warning.leaving
