"""Config to Composer's loggers."""

import uuid
from pathlib import Path

from composer import Logger, State
from composer.loggers import LoggerDestination, TensorboardLogger
from composer.utils import dist

from ugt_composer.checkpoint.rank0_errors import save_on_rank_0
from ugt_composer.checkpoint.whole_state import from_rank_0
from ugt_composer.config.schema import Config
from ugt_composer.training.callbacks.metrics_file import MetricsFile
from ugt_composer.training.intervals import Every


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


def build_loggers(config: Config) -> list[LoggerDestination]:
    """metrics.jsonl always; the others if `loggers.*` enables them."""
    loggers: list[LoggerDestination] = [MetricsFile(config.save_folder, config.log_interval)]
    wandb, mlflow = config.loggers.wandb, config.loggers.mlflow
    if config.loggers.tensorboard:
        loggers.append(ResumingTensorboard(str(Path(config.save_folder) / "tensorboard"), config.save_interval))
    if wandb is not None:
        from composer.loggers import WandBLogger

        loggers.append(
            WandBLogger(
                project=wandb.project,
                entity=wandb.entity,
                group=wandb.group,
                name=config.run_name,
                tags=list(wandb.tags),
                # After a preemption the run continues in the logger too.
                init_kwargs={"id": run_id(config.save_folder), "resume": "allow"},
            )
        )
    if mlflow is not None:
        from composer.loggers import MLFlowLogger

        loggers.append(
            MLFlowLogger(
                experiment_name=mlflow.experiment_name,
                tracking_uri=mlflow.tracking_uri,
                run_name=f"{config.run_name}-{run_id(config.save_folder)[:8]}",
                resume=True,
            )
        )
    return loggers


def run_id(folder: str) -> str:
    """The id of the save folder, created by its first run and read by the runs that resume it. Rank 0 sends it to the
    other ranks, whose machines may not see its save folder. A collective.

    Raises:
        RunError: the folder cannot be written.
    """
    path = Path(folder) / "run_id"

    def make() -> None:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(uuid.uuid4().hex)

    save_on_rank_0(folder, make)
    return from_rank_0(path.read_text() if dist.get_global_rank() == 0 else None)
