"""Puts a checkpoint back into a run: weights, optimizer, timestamp, scaler and position in the data."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer import Logger, State
from composer.utils import dist
from omegaconf import OmegaConf

from ugt_composer.checkpoint.run_checkpoints import AVERAGE
from ugt_composer.checkpoint.sharded import restore_sharded
from ugt_composer.checkpoint.whole_state import (
    from_rank_0,
    group_settings,
    scatter_optimizer,
    scatter_weights,
    set_groups,
)
from ugt_composer.config.schema import Config
from ugt_composer.errors import UserError
from ugt_composer.parallelism.strategy import Strategy
from ugt_composer.torch_patches import recomputed_lrs

log = logging.getLogger(__name__)
ON_RANK_0_ONLY = ("model", "optimizer", AVERAGE)  # parts of a checkpoint's content


@dataclass(frozen=True)
class Restored:
    """
    Attributes:
        dataset_position: the training data set's position, as Streaming keeps it.
        random_state: of every rank, as Composer keeps it.
        save_best_on: of the run that wrote the checkpoint.
    """

    dataset_position: dict[str, Any]
    random_state: list[dict[str, Any]]
    save_best_on: str | None


def find_on_rank_0(find: Callable[[], tuple[Path, dict[str, Any]] | None]) -> tuple[Path, dict[str, Any]] | None:
    """Runs `find` on rank 0, so that all ranks resume from the same file and only one reads it. A collective.

    Returns:
        Path and content of a checkpoint; on the other ranks without the tensors of model, average and optimizer. None
        where there is no checkpoint.

    Raises:
        UserError: on every rank, what `find` raised on rank 0.
    """
    found: tuple[Path, dict[str, Any]] | None = None
    shared: tuple[Any, UserError | None] = (None, None)
    if dist.get_global_rank() == 0:
        try:
            found = find()
            shared = (found and (found[0], {k: v for k, v in found[1].items() if k not in ON_RANK_0_ONLY}), None)
        except UserError as error:
            shared = (None, error)
    others, problem = from_rank_0(shared)
    if problem is not None:
        raise problem
    return found if found is not None else others


def restore(
    path: Path,
    content: dict[str, Any],
    config: Config,
    strategy: Strategy,
    state: State,
    logger: Logger,
    changed: Mapping[str, tuple[Any, Any]],
    is_schedule_changed: bool,
    average_from_model: Callable[[], None] | None = None,
) -> Restored:
    """Puts a checkpoint into the strategy and Composer's state. A collective.

    Args:
        path, content: of the checkpoint, as `find_on_rank_0` returns them.
        changed: keys that differ from the checkpoint's and may, as `check_resumable` returns them.
        is_schedule_changed: the learning rate is put on the config's schedule although no key of it has changed.
        average_from_model: sets the average of the weights to the model's; None: the run has no average.

    Raises:
        UserError: it holds shards of another strategy or number of ranks.
    """
    configured_groups = group_settings(strategy)
    if "sharded" in content:
        restore_sharded(path, content["sharded"], config.parallelism, strategy)
    else:
        if average_from_model is not None:
            scatter_weights(strategy, content.get(AVERAGE))
            average_from_model()
        scatter_weights(strategy, content.get("model"))
        scatter_optimizer(strategy, content.get("optimizer"))
    dataset_position = dict(content["state"]["dataset_state"]["train"])  # load_state_dict sets it to None
    for callback in state.callbacks:
        if not callback.state_dict():  # Composer would warn that the checkpoint of an earlier version has none
            content["state"]["callbacks"].setdefault(type(callback).__qualname__, {})
    state.load_state_dict(content["state"], logger, strict=True)
    if state.scaler is not None and state.scaler.is_enabled() and content["scaler"]:
        state.scaler.load_state_dict(content["scaler"])
    if is_schedule_changed or any(key.startswith(("optimizer.", "scheduler.")) for key in changed):
        _set_optimizer_settings(strategy, state, configured_groups)
    if changed and dist.get_global_rank() == 0:
        log.warning("resume_despite: %s", "; ".join(f"{k} was {a}, is {b}" for k, (a, b) in changed.items()))
    log.info("resumed from %s, batch %d", path, state.timestamp.batch.value)
    return Restored(dataset_position, content["rng"], OmegaConf.create(content["config"]).get("save_best_on"))


def _set_optimizer_settings(strategy: Strategy, state: State, groups: list[dict[str, Any]]) -> None:
    """Puts the config's settings in the place of the checkpoint's, and the learning rate on the config's curve."""
    set_groups(strategy, groups)
    for scheduler in state.schedulers:
        scheduler.base_lrs = [group["initial_lr"] for group in groups]
        for group, lr in zip(strategy.optimizer.param_groups, recomputed_lrs(scheduler), strict=True):
            group["lr"] = lr
