"""What is printed when a run has ended: its last and its best results, and the command that usually follows."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ugt_composer.config.load import load_config
from ugt_composer.config.schema import Config
from ugt_composer.config.shipped import FOLDER
from ugt_composer.storage.s3_url import is_url
from ugt_composer.terminal import duration
from ugt_composer.training.best_model import saved_best

STAGES = Path(FOLDER)  # of the repository, or written by `ugt init`


def end_line(config: Config, batch: int, seconds: float, results: Sequence[str]) -> str:
    """
    Args:
        batch: the last one that was trained.
        seconds: that this process trained for.
        results: of the evaluation after that batch, such as "recall@10 0.0417".
    """
    found = f": {', '.join(results)}" if results else ""
    return f"{config.save_folder}: trained to batch {batch:,} in {duration(seconds)}{found}"


def what_now(config: Config, program: Sequence[str]) -> list[str]:
    """Where the best model of an ended run is, and what is usually done with it.

    Args:
        program: the words that started the training, without files and keys.
    """
    folder = Path(config.save_folder)
    best, model = saved_best(folder / "best"), str(folder / "best")
    if best is None:  # without `save_best_on`, `best/` is the latest
        return [f"  model     {model}", *_next(config, model, program)]
    return [
        f"  best      {model}: batch {best.batch:,}, {best.metric} {best.value:.4f}",
        *_next(config, model, program),
    ]


def _next(config: Config, model: str, program: Sequence[str]) -> list[str]:
    """The next stage's command, or those that use the model."""
    path = _next_stage(config)
    if path is not None:
        return _stage_lines(config, path, model, program)
    eval_data = [stream.local for stream in config.data.eval.streams] or [config.data.eval.local]
    data = [word for folder in eval_data if folder and not is_url(folder) for word in ("--data", folder)]
    evaluate = ["ugt", "evaluate", "--checkpoint", model, *(data or ["--data", "DIR"])]
    return [
        f"  next      {shlex.join(evaluate)}",
        f"            {shlex.join(['ugt', 'recommend', '--checkpoint', model, '--history', 'FILE'])}",
    ]


def _next_stage(config: Config) -> Path | None:
    """The YAML of the stage after this one, which its losses tell; None if there is none here."""
    loss = config.loss
    if loss.lambda_preference > 0:
        return None
    path = STAGES / ("stage3.yaml" if loss.lambda_contrastive > 0 else "stage2.yaml")
    return path if path.is_file() else None


def _stage_lines(config: Config, path: Path, model: str, program: Sequence[str]) -> list[str]:
    stage = load_config(path)
    keys = {"init_from": stage.init_from, "loss.reference_from": stage.loss.reference_from}
    overrides = [f"{key}={model}" for key, value in keys.items() if value is not None and value != model]
    lines = [f"  next      {shlex.join([*program, str(path), *overrides])}"]
    model_before = replace(config.model, dropout=stage.model.dropout)  # is no size
    is_same = model_before == stage.model and config.data.catalogue == stage.data.catalogue
    if not is_same or not _folders(config) <= _folders(stage):
        pairs = (
            ", and preference rows, such as the preferences.yaml of ugt import" if stage.loss.lambda_preference else ""
        )
        lines.append(f"            with the files and keys that this run was given for data and model{pairs}")
    return lines


def _folders(config: Config) -> set[str | None]:
    train, evaluation = config.data.train, config.data.eval
    return {source.local for data in (train, evaluation) for source in (data, *data.streams)} - {None}
