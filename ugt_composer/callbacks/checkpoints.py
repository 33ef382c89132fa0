"""Checkpoints while training: rotated ones to resume from, and the portable `best/` and `latest/`."""

import math
from pathlib import Path
from typing import Any

from composer import Callback, Logger, State
from composer.utils import dist, reproducibility

from ugt_composer.checkpoint.portable import save_portable
from ugt_composer.checkpoint.training import checkpoint_path, rotate, write_checkpoint
from ugt_composer.composer_model import ComposerUGT
from ugt_composer.config import Config, config_yaml
from ugt_composer.intervals import Every

EVAL_LABEL = "eval"


class Checkpoints(Callback):
    """Saves every `save_interval` and at the end of the run.

    Args:
        model: what is trained.
        config: of the run; goes into each file.
        facts: strings for the portable models' header, such as the catalogue's fingerprint.
        save_best_on: evaluation metric that `best/` maximises (a loss: minimises); None: `best/` is `latest/`.
        data: what tells the training data from other data; a run goes on only with the same.
    """

    def __init__(
        self, model: ComposerUGT, config: Config, facts: dict[str, str], save_best_on: str | None, data: list[str]
    ):
        self.data = data
        self.model = model
        self.config = config
        self.facts = facts
        self.save_best_on = save_best_on
        self.folder = Path(config.save_folder)
        self.every = Every(config.save_interval)
        self.best_value: float | None = None
        self.by_hand = False

    def state_dict(self) -> dict[str, Any]:
        return {"best_value": self.best_value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_value = state["best_value"]

    def eval_standalone_start(self, state: State, logger: Logger) -> None:
        self.by_hand = True  # an evaluation outside training selects nothing

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        self.by_hand = False

    def eval_end(self, state: State, logger: Logger) -> None:
        if self.save_best_on is None or self.by_hand:
            return
        value = float(state.eval_metrics[EVAL_LABEL][self.save_best_on].compute())
        if is_better(value, self.best_value, self.save_best_on):
            self.best_value = value
            self._save_portable("best", state, {f"best {self.save_best_on}": f"{value:.6g}"})

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        if self.every.is_due(state):
            self.save(state)

    def save(self, state: State) -> None:
        """Writes the training checkpoint and `latest/`, then drops checkpoints past the number to keep."""
        path = checkpoint_path(self.folder, state.timestamp.batch.value)
        content = training_state(state, self.config, self.data)
        if dist.get_global_rank() == 0:
            write_checkpoint(path, content)
            rotate(self.folder, self.config.save_num_checkpoints_to_keep)
        self._save_portable("latest", state)
        if self.best_value is None:
            self._save_portable("best", state)
        dist.barrier()

    def _save_portable(self, name: str, state: State, facts: dict[str, str] | None = None) -> None:
        if dist.get_global_rank() == 0:
            facts = {**self.facts, "batch": str(state.timestamp.batch.value), **(facts or {})}
            save_portable(self.folder / name, self.model.model.state_dict(), self.config, facts)


def training_state(state: State, config: Config, data: list[str]) -> dict[str, Any]:
    """All that a resumed run needs: Composer's state, every rank's random state, and what both belong to."""
    rng = reproducibility.get_rng_state()
    return {"state": state.state_dict(), "rng": rng, "config": config_yaml(config), "data": data}


def is_better(value: float, best: float | None, metric: str) -> bool:
    """A loss and gini are better when lower, anything else when higher; what is not a number never is."""
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value < best if metric.endswith("loss") or metric.startswith("gini") else value > best
