"""Whether a run may resume from a checkpoint: data and configuration are the same, or were changed on purpose.

Each field of the configuration declares whether it may change (`config/keys.py`). Data workers and microbatches always
may; strategy and number of ranks may unless the checkpoint is sharded.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ugt_composer.config.checks import is_within, on_resume_of_keys
from ugt_composer.config.keys import FIXED, FREE, ON_REQUEST_UNLESS_ZERO, OnResume
from ugt_composer.config.load import config_yaml, flat_keys
from ugt_composer.config.schema import Config, LossConfig
from ugt_composer.errors import UserError

ANCHOR = "loss.lambda_anchor"
CATALOGUE = "data.catalogue"  # compared by its content, wherever the file is
SCHEDULE_END = "scheduler.t_max"  # compared by the learning rate, see `training/schedule.py`
INSTEAD = "or train into another save_folder with init_from"


def check_resumable(
    path: Path, content: Mapping[str, Any], config: Config, data: list[str], catalogue: str | None
) -> dict[str, tuple[Any, Any]]:
    """Compares a checkpoint with the run that is to resume from it.

    Args:
        content: of the checkpoint at `path`.
        config: of the run that resumes.
        data: the hash of each index.json in data.train.
        catalogue: the fingerprint of data.catalogue; None without one.

    Returns:
        {key: (value in the checkpoint, value now)} of what differs and is named in `resume_despite`.

    Raises:
        UserError: something differs that `resume_despite` does not name; with both values and what can be done.
    """
    if content["data"] != data:
        raise UserError(
            f"{path} was written with other rows in data.train (index.json was {_hashes(content['data'])}, now it is "
            f"{_hashes(data)}): the run cannot resume with other data; use the folders it began with, {INSTEAD}"
        )
    on_resume = on_resume_of_keys(Config)
    differences = {
        name: values
        for name, values in config_differences(content["config"], config).items()
        if name not in (CATALOGUE, SCHEDULE_END) and not is_free(name)
    }
    if content["catalogue"] != catalogue:
        differences[CATALOGUE] = (_short(content["catalogue"]), _short(catalogue))
    for name, (before, now) in differences.items():
        can_change = _can_change(on_resume.get(name, FIXED), before, now)
        if can_change and is_within(name, config.resume_despite):
            continue
        way_out = f'add "{name}" to resume_despite to resume with the new value, ' if can_change else ""
        problem = "" if can_change else ": the run cannot resume with this change"
        raise UserError(
            f"{path} was written with {name} = {before}, now it is {now}{problem}; set it back, {way_out}{INSTEAD}"
        )
    return differences


def config_differences(text: str, config: Config) -> dict[str, tuple[Any, Any]]:
    """{key: (value before, value now)} of what differs from an earlier config, the text of `config_yaml`.

    A key that it lacks, because an older version wrote it, counts as having its default. A null loss.lambda_anchor
    equals the number that it stands for.
    """
    texts = text, config_yaml(config), config_yaml(Config())
    before, now, default = (flat_keys(OmegaConf.to_container(OmegaConf.create(text))) for text in texts)
    before = {name: value for name, value in default.items() if name not in before} | before
    names = dict.fromkeys([*before, *now])
    differences = {name: (before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)}
    if ANCHOR in differences and _loss_of(before).anchor_weight == config.loss.anchor_weight:
        del differences[ANCHOR]
    return differences


def is_free(name: str) -> bool:
    """Whether a key, or the key whose value contains it, such as `callbacks`, may always change."""
    return is_within(name, tuple(key for key, rule in on_resume_of_keys(Config).items() if rule is FREE))


def _loss_of(flat: Mapping[str, Any]) -> LossConfig:
    return LossConfig(**{field.name: flat[f"loss.{field.name}"] for field in fields(LossConfig)})


def _can_change(on_resume: OnResume, before: Any, now: Any) -> bool:
    if on_resume is ON_REQUEST_UNLESS_ZERO:
        # null stands for a value that other keys decide, so only another null is surely not from or to 0.
        return before is not None and now is not None and (before > 0) == (now > 0)
    return on_resume is not FIXED


def _hashes(data: list[str]) -> str:
    return ", ".join(_short(value) for value in data)


def _short(fingerprint: str | None) -> str:
    return "none" if fingerprint is None else fingerprint[:12]
