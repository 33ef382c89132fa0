"""Config to Composer's loggers."""

import uuid
from pathlib import Path

from composer.loggers import LoggerDestination
from composer.utils import dist

from ugt_composer.callbacks.metrics_file import MetricsFile
from ugt_composer.config import Config
from ugt_composer.errors import UserError


def build_loggers(config: Config) -> list[LoggerDestination]:
    """metrics.jsonl always; the others as `loggers.*` says. UserError where an extra is not installed."""
    loggers: list[LoggerDestination] = [MetricsFile(config.save_folder, config.log_interval)]
    wandb, mlflow = config.loggers.wandb, config.loggers.mlflow
    if config.loggers.tensorboard:
        from composer.loggers import TensorboardLogger

        loggers.append(TensorboardLogger(log_dir=str(Path(config.save_folder) / "tensorboard")))
    if wandb is not None:
        _require("wandb")
        from composer.loggers import WandBLogger

        loggers.append(
            WandBLogger(
                project=wandb.project,
                entity=wandb.entity,
                group=wandb.group,
                name=config.run_name,
                tags=list(wandb.tags),
                # The same run again after a preemption, not a new one.
                init_kwargs={"id": _run_id(config.save_folder), "resume": "allow"},
            )
        )
    if mlflow is not None:
        _require("mlflow")
        from composer.loggers import MLFlowLogger

        loggers.append(
            MLFlowLogger(
                experiment_name=mlflow.experiment_name,
                tracking_uri=mlflow.tracking_uri,
                run_name=f"{config.run_name}-{_run_id(config.save_folder)[:8]}",
                resume=True,
            )
        )
    return loggers


def _run_id(folder: str) -> str:
    """An id that belongs to the save folder: made by its first run, read by those that go on from it."""
    path = Path(folder) / "run_id"
    if not path.exists() and dist.get_global_rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex)
    dist.barrier()
    return path.read_text()


def _require(extra: str) -> None:
    try:
        __import__(extra)
    except ImportError:
        raise UserError(f"loggers.{extra} is set, but not installed; pip install 'ugt-composer[{extra}]'") from None
