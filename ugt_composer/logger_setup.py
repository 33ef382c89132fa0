"""Config to Composer's loggers."""

from pathlib import Path

from composer.loggers import LoggerDestination

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
                init_kwargs={"id": config.run_name, "resume": "allow"},
            )
        )
    if mlflow is not None:
        _require("mlflow")
        from composer.loggers import MLFlowLogger

        loggers.append(
            MLFlowLogger(
                experiment_name=mlflow.experiment_name,
                tracking_uri=mlflow.tracking_uri,
                run_name=config.run_name,
                resume=True,
            )
        )
    return loggers


def _require(extra: str) -> None:
    try:
        __import__(extra)
    except ImportError:
        raise UserError(f"loggers.{extra} is set, but not installed; pip install 'ugt-composer[{extra}]'") from None
