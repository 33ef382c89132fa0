"""Checkpoints while training: rotated ones to resume from, and the portable `best/` and `latest/`."""

import copy
import logging
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from composer import Callback, Logger, State
from composer.utils import dist, reproducibility
from torch import Tensor

from ugt_composer import __version__
from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.extension import catalogue_copy
from ugt_composer.checkpoint.background_writer import Writer
from ugt_composer.checkpoint.machines import ONE_MACHINE, Machines
from ugt_composer.checkpoint.portable import FINGERPRINT, save_portable
from ugt_composer.checkpoint.rank0_errors import save_on_leaders, save_on_rank_0, saving_into
from ugt_composer.checkpoint.run_checkpoints import AVERAGE, VERSION, rotate, unreadable, write_checkpoint
from ugt_composer.checkpoint.run_events import BEST, CHECKPOINT, END, RESUME, START, RunEvents
from ugt_composer.checkpoint.save_folder import checkpoint_path
from ugt_composer.checkpoint.sharded import state_beside_shards, write_sharded
from ugt_composer.checkpoint.uploads import Uploads, finish_all
from ugt_composer.checkpoint.whole_state import HostMemory, gather_optimizer, gather_weights
from ugt_composer.config.load import config_yaml
from ugt_composer.config.schema import Config
from ugt_composer.errors import UserError
from ugt_composer.parallelism.strategy import Strategy
from ugt_composer.terminal import print_line
from ugt_composer.training.best_guard import BestGuard
from ugt_composer.training.best_model import Best, Criterion, is_better, value_fact
from ugt_composer.training.callbacks.weight_average import WeightAverage
from ugt_composer.training.intervals import Every

log = logging.getLogger(__name__)
EVAL_LABEL = "eval"
NETWORK = "model."  # prefix of UGT's weights in the names of ComposerUGT's


class Checkpoints(Callback):
    """Saves every `save_interval` and at the end of the run. Training waits only while weights and optimizer state are
    copied; the copy is written in the background.

    Args:
        strategy: has the weights and the optimizer state.
        config: of the run; saved in each file.
        facts: strings for the portable models' header, such as the catalogue's fingerprint.
        criterion: what selects `best/`; None: `best/` equals `latest/`.
        guard: which evaluations may select it; not used without a criterion.
        data: hashes that identify the training data; a run resumes only with the same data.
        catalogue: `data.catalogue`, of which the portable models keep a copy; None without one.
        average: of the weights, which `best/` and `latest/` then have; None without `ema_decay`.
        machines: of the job, and which of them share this rank's save folder.
        uploads: copies the save folder to a store, see `open_store`; None without `checkpoint.remote`.
    """

    def __init__(
        self,
        strategy: Strategy,
        config: Config,
        facts: dict[str, str],
        criterion: Criterion | None,
        guard: BestGuard,
        data: list[str],
        catalogue: Catalogue | None = None,
        uploads: Uploads | None = None,
        average: WeightAverage | None = None,
        machines: Machines = ONE_MACHINE,
    ):
        self.machines = machines
        self.average = average
        self.uploads = uploads
        self.is_unsent = True  # whether the store may lack something
        self._renaming = threading.Lock()  # rotation and the search for files to upload exclude each other
        self.data = data
        self.catalogue = catalogue
        self.strategy = strategy
        self.config = config
        self.facts = facts
        self.criterion = criterion
        self.guard = guard
        self.folder = Path(config.save_folder)
        self.every = Every(config.save_interval)
        self.good: set[Path] = set()  # training checkpoints that this process wrote or verified
        self.best: Best | None = None  # None: `best/` does not exist or equals `latest/`
        self.by_hand = False
        self.writer = Writer(self.folder)
        self.events = RunEvents(self.folder, writes=dist.get_global_rank() == 0)
        self._is_started = False
        self._config_text = config_yaml(config)
        self._memory = HostMemory()  # reused for the copies that the writer writes
        self._average_memory = HostMemory()
        self.before_save: Callable[[], None] = lambda: None  # raises an error if nothing may be saved
        # Called in the writer's thread when the checkpoint is written.
        self.after_save: Callable[[], None] = lambda: None
        self.save_seconds = 0.0  # duration of the last save

    def state_dict(self) -> dict[str, Any]:
        return {"best": None if self.best is None else self.best.state_dict(), "guard": self.guard.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "best" in state:
            self.best = None if state["best"] is None else Best.from_state(state["best"])
        elif state["best_value"] is not None:  # of version 0.1.0; `continue_selection` adds the name
            self.best = Best(state["best_value"], Criterion("", None, {}))
        if "guard" in state:
            self.guard.load_state_dict(state["guard"])

    def continue_selection(self, metric_before: str | None, is_finished: bool) -> None:
        """Logs whether `best/`, which this run's earlier start selected, is still what the configuration asks for.

        If it is not, the next evaluation selects it afresh, or without a metric the next save replaces it.

        Args:
            metric_before: `save_best_on` of the checkpoint that the run resumed from.
            is_finished: no evaluation or save will follow.
        """
        if self.best is None:
            return
        if not self.best.criterion.metric:
            self.best = Best(self.best.value, replace(self.best.criterion, metric=metric_before or "unknown"))
        before = self.best.criterion
        if self.criterion is None:
            change: str | None = f"save_best_on was {before.metric}, now it is null"
            if self.config.save_best_on is not None:
                change = "data.eval is empty now"
            outcome = "each save replaces it by the latest model"
        else:
            change = self.criterion.change_from(before)
            outcome = f"the next evaluation selects it afresh, by {self.criterion.metric} alone"
        if change is None or dist.get_global_rank() != 0:
            return
        if is_finished:
            outcome = "it stays as it is, because the run is finished: raise max_duration to select another model"
        log.warning(
            "%s was selected by %s (%.6g), which cannot be compared any more (%s); %s",
            self.folder / "best",
            before.metric,
            self.best.value,
            change,
            outcome,
        )

    def fit_start(self, state: State, logger: Logger) -> None:
        self._check_states(state)  # now, and not only when the first checkpoint is due
        self.by_hand = False  # after an evaluation that was interrupted
        if not self._is_started:
            self._is_started = True
            event = START if state.timestamp.batch.value == 0 else RESUME
            self.events.add(event, **_place(state), version=__version__, ranks=dist.get_world_size())

    def eval_standalone_start(self, state: State, logger: Logger) -> None:
        self.by_hand = True  # an evaluation outside training does not select `best/`

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        self.by_hand = False

    def eval_end(self, state: State, logger: Logger) -> None:
        if self.criterion is None or self.by_hand:
            return
        name, batch = self.criterion.metric, state.timestamp.batch.value
        values = {key: float(metric.compute()) for key, metric in state.eval_metrics[EVAL_LABEL].items()}
        is_start = batch == 0
        if is_start:
            self.guard.begin(values)
        is_allowed = self.guard.allows(values)
        is_best = is_allowed and is_better(values[name], self._value_to_beat(), bool(self.criterion.higher_is_better))
        if is_best or is_start:
            self.best = Best(values[name], self.criterion, fulfils=is_allowed)
            self._save_best(batch, values[name])
            self.events.add(BEST, **_place(state), metric=name, value=values[name])
        if not is_start and self.guard.condition is not None:
            self.guard.count(is_allowed)
            reason = "not better than best/" if is_allowed else "outside the limit"
            outcome = "kept as best/" if is_best else f"not kept, {reason}"
            _print_once(self.guard.comparison(batch, name, values, outcome))
            if self.guard.is_hopeless:
                _print_once(f"{self.folder}: ends after batch {batch}: {self.guard.about_end()}")
                state.stop_training()

    def _save_best(self, batch: int, value: float) -> None:
        assert self.criterion is not None
        facts = {value_fact(self.criterion.metric): f"{value:.6g}", **self.criterion.facts}
        self.writer.finish()
        weights = self._gather_weights(averaged=True)
        save_on_rank_0(self.folder, lambda: self._write_portable("best", batch, weights, facts))
        self.is_unsent = True

    def _value_to_beat(self) -> float | None:
        """The value of `best/`; None if there is none, another criterion selected it, or it is the start's model,
        which does not fulfil `save_best_if`."""
        if self.best is None or self.criterion is None or self.criterion.change_from(self.best.criterion):
            return None
        return self.best.value if self.best.fulfils else None

    def batch_end(self, state: State, logger: Logger) -> None:
        self.writer.check()

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        if self.every.is_due(state):
            self.save(state)

    def before_dataloader(self, state: State, logger: Logger) -> None:
        self.send()  # the earliest event at which every logger has written the batch

    def fit_end(self, state: State, logger: Logger) -> None:
        self.writer.finish()
        self.events.add(END, **_place(state))
        self.send()

    def send(self) -> None:
        """Starts to upload the files saved since the last call."""
        if self.uploads is not None and self.is_unsent:
            self.is_unsent = False
            with saving_into(self.folder), self._renaming:
                self.uploads.send()

    def finish_uploads(self) -> None:
        """Waits for all uploads. RunError if some files cannot be uploaded. A collective with `checkpoint.sharded`."""
        self.writer.wait()
        self.send()
        if self.config.checkpoint.remote is not None and self.config.checkpoint.sharded:
            finish_all(self.uploads, self.machines)
        elif self.uploads is not None:
            self.uploads.finish()
        if self.uploads is not None and self.machines.is_leader:
            # Removes a checkpoint that was kept only because it was being uploaded.
            rotate(self.folder, self.config.save_num_checkpoints_to_keep, self.good)

    def upload_within(self, seconds: float) -> str | None:
        """Uploads what a resumed run needs, for at most so many seconds; older checkpoints are left to that run.

        Returns:
            A message about files still missing from the store, or None.
        """
        if self.uploads is None:
            return None
        if self.is_unsent or not self.uploads.is_complete:
            with saving_into(self.folder), self._renaming:
                self.uploads.send(newest_only=True)
            self.is_unsent = True  # if this process does not end, the older ones
        return None if self.uploads.wait(max(0.0, seconds)) else self.uploads.missing()

    def save(self, state: State) -> None:
        """Starts to write the training checkpoint and `latest/`, and then to delete checkpoints that need not be kept.

        `writer.finish()` waits until that is done; so does the next save.

        Raises:
            RunError: on every rank, if the folder cannot be written; earlier checkpoints are still there.
        """
        self.writer.finish()
        self.before_save()
        if self.criterion is None:
            self.best = None
        started = time.monotonic()
        weights, portable = self._gather_both(self._memory, self._average_memory)
        path = checkpoint_path(self.folder, state.timestamp.batch.value, self.config.checkpoint.sharded)
        if self.config.checkpoint.sharded:
            beside = state_beside_shards(weights, self.config.parallelism, self.strategy)
            write_sharded(path, self._light_state(state) | {"sharded": beside}, self.strategy, self.machines)
            content = None
            if self.machines.are_separate:
                save_on_leaders(self.folder, self.machines, lambda: self._rotate_elsewhere(path))
            self.is_unsent = True
        else:
            content = self._whole_state(state, weights, portable, self._memory)
        names = ("latest",) if self.best is not None else ("latest", "best")
        batch, place = state.timestamp.batch.value, _place(state)

        def write() -> None:
            if content is not None:
                write_checkpoint(path, content)
            self._rotate(path)
            for name in names:
                self._write_portable(name, batch, portable)
            self.is_unsent = True
            self.save_seconds = time.monotonic() - started
            self.events.add(CHECKPOINT, **place, seconds=round(self.save_seconds, 3))
            self.after_save()

        if dist.get_global_rank() == 0:
            self.writer.begin(write)

    def _rotate(self, written: Path) -> None:
        self.good.add(written)
        keep_also = None if self.uploads is None else self.uploads.uploading
        with self._renaming:
            rotate(self.folder, self.config.save_num_checkpoints_to_keep, self.good, keep_also)

    def _rotate_elsewhere(self, written: Path) -> None:
        if dist.get_global_rank() != 0:  # whose writer rotates
            self._rotate(written)

    def write(self, path: Path, state: State) -> None:
        """Writes one file that any strategy on any number of ranks can resume from."""
        self.writer.finish()
        content = self._whole_state(state, *self._gather_both())
        save_on_rank_0(path.parent, lambda: write_checkpoint(path, content))

    def _whole_state(
        self,
        state: State,
        weights: dict[str, Tensor],
        portable: dict[str, Tensor],
        memory: HostMemory | None = None,
    ) -> dict[str, Any]:
        """A copy, so that training may continue."""
        content = copy.deepcopy(self._light_state(state))
        content |= {"model": weights, "optimizer": gather_optimizer(self.strategy, memory)}
        if self.average is not None:
            content[AVERAGE] = {name: portable[name] for name in self.average.names if name in portable}
        return content

    def _gather_both(
        self, memory: HostMemory | None = None, average_memory: HostMemory | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weights that are trained, and those of the portable models; without `ema_decay` the same dict."""
        weights = self._gather_weights(averaged=False, memory=memory)
        return weights, weights if self.average is None else self._gather_weights(averaged=True, memory=average_memory)

    def _gather_weights(self, averaged: bool, memory: HostMemory | None = None) -> dict[str, Tensor]:
        """Of the average, or those that are trained, whichever of them the model has now. Without `ema_decay` they are
        the same."""
        with nullcontext() if self.average is None else self.average.in_model(averaged):
            return gather_weights(self.strategy, memory)

    def _check_states(self, state: State) -> None:
        """UserError if a checkpoint could not hold the state of one of the callbacks."""
        for callback in state.callbacks:
            if (reason := unreadable(callback.state_dict())) is not None:
                raise UserError(
                    f"the state_dict of {type(callback).__name__} cannot be part of a checkpoint: {reason}; expected "
                    "numbers, text, tensors, and lists and dicts of them"
                )

    def _light_state(self, state: State) -> dict[str, Any]:
        """Everything that a resumed run needs besides weights and optimizer state, and what identifies its run."""
        self._check_states(state)
        rng = reproducibility.get_rng_state()
        return {
            VERSION: __version__,
            "state": state.state_dict(),
            "scaler": {} if state.scaler is None else state.scaler.state_dict(),
            "rng": rng,
            "config": self._config_text,
            "data": self.data,
            "catalogue": self.facts.get(FINGERPRINT),
        }

    @cached_property
    def _catalogue_copy(self) -> bytes | None:
        return None if self.catalogue is None else catalogue_copy(self.catalogue)

    def _write_portable(
        self, name: str, batch: int, weights: dict[str, Tensor], facts: dict[str, str] | None = None
    ) -> None:
        facts = {**self.facts, "batch": str(batch), **(facts or {})}
        network = {key.removeprefix(NETWORK): value for key, value in weights.items() if key.startswith(NETWORK)}
        save_portable(self.folder / name, network, self.config, facts, self._catalogue_copy)


def _place(state: State) -> dict[str, int]:
    """What the run has trained on so far, for its events."""
    return {"batch": state.timestamp.batch.value, "rows": state.timestamp.sample.value}


def _print_once(line: str) -> None:
    if dist.get_global_rank() == 0:
        print_line(line)
