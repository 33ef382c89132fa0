"""Whether a run may go on from a checkpoint: what belongs to it is as it was, or was changed on purpose."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ugt_composer.config.schema import RESUME_DESPITE, Config, config_yaml, is_within
from ugt_composer.errors import UserError

# What decides the numbers of a step. Strategy, ranks, workers and microbatches may change.
FIXED = (
    "model",
    "loss",
    "optimizer",
    "scheduler",
    "init_from",
    "init_item_vectors",
    "seed",
    "max_grad_norm",
    "global_train_batch_size",
    "data.train.shuffle",
    "data.train.shuffle_block_size",
    "data.train.num_canonical_nodes",
)
WEIGHTS = ("loss.lambda_contrastive", "loss.lambda_preference")  # at 0 their part of the model is not trained
INSTEAD = "or train into another save_folder with init_from"


def check_resumable(
    path: Path, content: Mapping[str, Any], own: Config, data: list[str], catalogue: str | None
) -> dict[str, tuple[Any, Any]]:
    """
    Args:
        content: of the checkpoint at `path`.
        data: the hash of each index in data.train.
        catalogue: its fingerprint.

    Returns:
        {key: (in the checkpoint, now)} of what differs and was to.

    Raises:
        UserError: something differs that `resume_despite` does not name; tells both values and what can be done.
    """
    if content["data"] != data:
        raise UserError(
            f"{path} was written with other rows in data.train (index.json was {_hashes(content['data'])}, now it is "
            f"{_hashes(data)}): the run cannot go on as it began; use the folders it began with, {INSTEAD}"
        )
    differences = _config_differences(content, own)
    if content["catalogue"] != catalogue:
        differences["data.catalogue"] = (_short(content["catalogue"]), _short(catalogue))
    for key, (before, now) in differences.items():
        can_change = is_within(key, RESUME_DESPITE) and not _starts_or_stops(key, before, now)
        if can_change and is_within(key, own.resume_despite):
            continue
        force = f'set resume_despite=["{key}"] to go on with the new one, ' if can_change else ""
        raise UserError(
            f"{path} was written with {key} = {before}, now it is {now}: the run cannot go on as it began; set it "
            f"back, {force}{INSTEAD}"
        )
    return differences


def _config_differences(content: Mapping[str, Any], own: Config) -> dict[str, tuple[Any, Any]]:
    """{key: (in the checkpoint, now)} of the fixed keys that differ, each by its full name."""
    old, new = _flat(content["config"]), _flat(config_yaml(own))
    keys = [key for key in dict.fromkeys([*old, *new]) if is_within(key, FIXED)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _starts_or_stops(key: str, before: float, now: float) -> bool:
    return key in WEIGHTS and (before > 0) != (now > 0)


def _flat(config: str) -> dict[str, Any]:
    """{"model.d_model": 512, …}"""
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = value

    add("", OmegaConf.to_container(OmegaConf.create(config)))
    return flat


def _hashes(data: list[str]) -> str:
    return ", ".join(_short(value) for value in data)


def _short(fingerprint: str | None) -> str:
    return "none" if fingerprint is None else fingerprint[:12]
