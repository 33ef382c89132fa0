"""What is printed when a run has ended: its last and its best results, and the command that usually follows."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from ugt_composer.config.load import load_config
from ugt_composer.config.schema import Config
from ugt_composer.config.shipped import DATA_YAML, FOLDER, PREFERENCES_YAML, shipped_yamls
from ugt_composer.errors import UserError
from ugt_composer.storage.s3_url import is_url
from ugt_composer.terminal import duration
from ugt_composer.training.best_model import saved_best

STAGES = Path(FOLDER)  # of the repository, or written by `ugt init`
# Overrides that the next stage's command repeats: of the data, the model and the machine, not of the training.
REPEATED = (
    *("model.", "data.", "evaluation.", "parallelism."),
    *("global_train_batch_size=", "device_train_microbatch_size=", "device_eval_batch_size=", "precision=", "compile="),
)


def end_line(config: Config, batch: int, seconds: float, results: Sequence[str]) -> str:
    """
    Args:
        batch: the last one that was trained.
        seconds: that this process trained for.
        results: of the evaluation after that batch, such as "recall@10 0.0417".
    """
    found = f": {', '.join(results)}" if results else ""
    return f"{config.save_folder}: trained to batch {batch:,} in {duration(seconds)}{found}"


def what_now(config: Config, program: Sequence[str], given: Sequence[str]) -> list[str]:
    """Where the best model of an ended run is, and what is usually done with it.

    Args:
        program: the words that started the training, without files and keys.
        given: the files and keys.
    """
    folder = Path(config.save_folder)
    best, model = saved_best(folder / "best"), str(folder / "best")
    if best is None:  # without `save_best_on`, `best/` is the latest
        return [f"  model     {model}", *_next(config, model, program, given)]
    return [
        f"  best      {model}: batch {best.batch:,}, {best.metric} {best.value:.4f}",
        *_next(config, model, program, given),
    ]


def _next(config: Config, model: str, program: Sequence[str], given: Sequence[str]) -> list[str]:
    """The next stage's command, or those that use the model."""
    path = _next_stage(config, Path(given[0]))
    if path is not None:
        return _stage_lines(path, model, program, given)
    eval_data = [stream.local for stream in config.data.eval.streams] or [config.data.eval.local]
    data = [word for folder in eval_data if folder and not is_url(folder) for word in ("--data", folder)]
    evaluate = ["ugt", "evaluate", "--checkpoint", model, *(data or ["--data", "DIR"])]
    return [
        f"  next      {shlex.join(evaluate)}",
        f"            {shlex.join(['ugt', 'recommend', '--checkpoint', model, '--history', 'FILE'])}",
    ]


def _next_stage(config: Config, given: Path) -> Path | None:
    """The YAML of the stage after this one, which its losses tell; None if there is none here.

    Args:
        given: the YAML of this stage.
    """
    loss = config.loss
    if loss.lambda_preference > 0:
        return None
    name = "stage3.yaml" if loss.lambda_contrastive > 0 else "stage2.yaml"
    places = (given.with_name(name), STAGES / name) if given.name in shipped_yamls() else (STAGES / name,)
    return next((path for path in places if path.is_file()), None)


def _stage_lines(path: Path, model: str, program: Sequence[str], given: Sequence[str]) -> list[str]:
    try:
        stage = load_config(path)
    except UserError as error:  # the run has ended well all the same
        return [f"  next      {path}, which cannot be loaded: {error}"]
    files, overrides = ([word for word in given if ("=" in word) == is_key] for is_key in (False, True))
    repeated = [word for word in overrides if word.startswith(REPEATED)]
    # Other files, such as a config.yaml, have keys of the stage, too, and are not repeated.
    knows_rest = not files or Path(files[0]).name in shipped_yamls()
    more, pairs = (files[1:] if knows_rest else []), []
    is_about_pairs = stage.loss.lambda_preference > 0
    if is_about_pairs:  # its training rows are others
        repeated = [word for word in repeated if not word.startswith(("data.train.", "data.eval."))]
        pairs = [path for file in more for path in _preferences_beside(file)]
    keys = {"init_from": stage.init_from, "loss.reference_from": stage.loss.reference_from}
    repeated += [f"{key}={model}" for key, value in keys.items() if value is not None and value != model]
    lines = [f"  next      {shlex.join([*program, str(path), *more, *pairs, *repeated])}"]
    if not knows_rest:
        lines.append(f"            with the keys for data and model of {' and '.join(files)}")
    if is_about_pairs and not pairs and (len(given) > 1 or not knows_rest):
        lines.append("            and preference rows, such as the preferences.yaml of ugt import")
    return lines


def _preferences_beside(file: str) -> list[str]:
    """The `preferences.yaml` of the import that wrote a `data.yaml`."""
    path = Path(file)
    beside = path.with_name(PREFERENCES_YAML)
    return [str(beside)] if path.name == DATA_YAML and beside.is_file() else []
