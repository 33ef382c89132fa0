"""Config to Composer's loggers."""

from pathlib import Path

from composer import Logger, State
from composer.loggers import LoggerDestination, TensorboardLogger

from ugt_composer.config.schema import Config
from ugt_composer.training.callbacks.metrics_file import MetricsFile
from ugt_composer.training.callbacks.run_progress import RunProgress, shown_metrics
from ugt_composer.training.intervals import Every
from ugt_composer.training.trackers.mlflow_tracker import MlflowTracker
from ugt_composer.training.trackers.tracker import Tracker
from ugt_composer.training.trackers.wandb_tracker import WandbTracker


class ResumingTensorboard(TensorboardLogger):
    """TensorBoard logs in which each step of a resumed run appears once: steps that an earlier process logged after the
    checkpoint are purged. Values logged up to a checkpoint are flushed before the checkpoint is written.
    """

    def __init__(self, log_dir: str, save_interval: str):
        super().__init__(log_dir=log_dir)
        self.saves = Every(save_interval)

    def fit_start(self, state: State, logger: Logger) -> None:
        if self.writer is not None and state.timestamp.batch.value > 0:
            self.writer.close()  # purge_step is written at the start of a new file, which the next value opens
            self.writer.purge_step = state.timestamp.batch.value + 1

    def batch_end(self, state: State, logger: Logger) -> None:
        super().batch_end(state, logger)
        if self.writer is not None and self.saves.is_due(state):
            self.writer.flush()


def build_loggers(config: Config, total: int) -> list[LoggerDestination]:
    """metrics.jsonl and what is printed always; the others if `loggers.*` enables them.

    Args:
        total: batches of the run.
    """
    trackers: list[Tracker] = []
    if config.loggers.wandb is not None:
        trackers.append(WandbTracker(config, config.loggers.wandb))
    if config.loggers.mlflow is not None:
        trackers.append(MlflowTracker(config, config.loggers.mlflow))
    progress = RunProgress(
        total,
        config.log_interval,
        shown_metrics(config.save_best_on, config.evaluation.k_values),
        Path(config.save_folder) / "best",
        shows_progress=config.loggers.progress_bar,
        shows_values=config.loggers.console,
    )
    metrics = MetricsFile(config.save_folder, config.log_interval, trackers)
    loggers: list[LoggerDestination] = [metrics, *trackers, progress]
    if config.loggers.tensorboard:
        loggers.append(ResumingTensorboard(str(Path(config.save_folder) / "tensorboard"), config.save_interval))
    return loggers
