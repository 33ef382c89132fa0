"""Weights & Biases, online and offline."""

import atexit
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from composer import Logger, State

from ugt_composer.config.schema import Config, WandbConfig
from ugt_composer.errors import EXIT_ERROR, EXIT_PREEMPTED, RunError, first_line
from ugt_composer.training.trackers.offline_steps import newest_step
from ugt_composer.training.trackers.tracker import Line, Tracker

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)


class WandbTracker(Tracker):
    """Logs each line of metrics.jsonl at its batch as a step of W&B.

    Steps of W&B only ever increase, and it renumbers or drops others. Therefore a resumed run logs nothing up to the
    newest step that W&B has: on its server or, offline, in the folders that the earlier processes left. Each process
    writes an offline folder of its own; `wandb sync` joins folders of one id in the order of their start, as their
    steps do not overlap. A killed process leaves the last 32 KiB out of its file: the steps that were in them come
    from metrics.jsonl, or are trained again.
    """

    def __init__(self, config: Config, settings: WandbConfig):
        super().__init__(config)
        self.arguments: dict[str, Any] = {
            "project": settings.project,
            "entity": settings.entity,
            "group": settings.group,
            "tags": list(settings.tags),
            "name": config.run_name,
            "resume": "allow",
            # W&B makes the folder "wandb" in it.
            "dir": os.environ.get("WANDB_DIR", config.save_folder),
        }
        self.run: Run | None = None
        self.newest = -1  # step that W&B has

    def begin(self, run_id: str, lines: Sequence[Line], resumes: bool, is_finished: bool) -> None:
        if self.run is None:
            import wandb

            is_offline = wandb.setup().settings.mode in ("offline", "dryrun")
            if is_offline:
                self.newest = newest_step(Path(self.arguments["dir"]) / "wandb", run_id)
            if is_finished and is_offline and (not lines or lines[-1]["batch"] <= self.newest):
                return  # without another folder
            self.run = self._start(run_id, resumes)
            if self.run is None:
                return
            self.run.config.update(self.settings | self.hyperparameters, allow_val_change=True)
            if not self.run.offline:
                self.newest = self.run.starting_step - 1
            atexit.register(self._finish)  # runs before W&B's own, which would not see why the process ends
        self.has_ended = is_finished
        for line in lines:
            self.send(line)

    def _start(self, run_id: str, resumes: bool) -> "Run | None":
        import wandb

        try:
            return wandb.init(**self.arguments, id=run_id)
        except Exception as error:  # W&B raises many kinds
            reason = first_line(error).rstrip(".")
            answers = isinstance(error, wandb.errors.UsageError | wandb.errors.AuthenticationError)
            if answers or not resumes:
                raise RunError(
                    f"loggers.wandb: {reason}; WANDB_MODE=offline logs to files that `wandb sync` uploads"
                ) from None
            log.warning(
                "loggers.wandb: %s; training continues without it, and the next start logs the steps that it lacks",
                reason,
            )
            return None

    def send(self, line: Line) -> None:
        if self.run is None or line["batch"] <= self.newest:
            return
        values = {name: value for name, value in line.items() if name != "batch" and value is not None}
        try:
            self.run.log(values, step=line["batch"])
        except Exception as error:  # such as that of W&B's own process, which was killed
            log.warning(
                "loggers.wandb: %s; training continues without it; a resumed run logs the steps that it lacks",
                first_line(error),
            )
            self.run = None
            return
        self.newest = line["batch"]

    def close(self, state: State, logger: Logger) -> None:
        self._finish()

    def _finish(self) -> None:
        if self.run is None:
            return
        run, self.run = self.run, None
        atexit.unregister(self._finish)
        if not self.has_ended and self.is_preempted:
            run.mark_preempting()
        run.finish(exit_code=0 if self.has_ended else EXIT_PREEMPTED if self.is_preempted else EXIT_ERROR)
