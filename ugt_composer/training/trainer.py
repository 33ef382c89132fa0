"""UGTTrainer: Composer's Trainer with the operations of a run: train, evaluate, save, load, resume."""

import logging
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from composer.core import Event
from composer.utils import dist, reproducibility

from ugt_composer.checkpoint.portable import FINGERPRINT
from ugt_composer.checkpoint.rank0_errors import save_on_rank_0
from ugt_composer.checkpoint.resumable import check_resumable
from ugt_composer.checkpoint.resume import find_on_rank_0, restore
from ugt_composer.checkpoint.run_checkpoints import newest_checkpoint, read_checkpoint
from ugt_composer.checkpoint.run_events import FAILED
from ugt_composer.config.schema import Config
from ugt_composer.errors import UserError, first_line
from ugt_composer.job.watchdog import Watchdog
from ugt_composer.parallelism.strategy import Strategy
from ugt_composer.terminal import print_line
from ugt_composer.training.callbacks.checkpoints import EVAL_LABEL, Checkpoints
from ugt_composer.training.callbacks.metrics_file import MetricsFile
from ugt_composer.training.callbacks.preemption import Preemption
from ugt_composer.training.callbacks.progress import Progress
from ugt_composer.training.callbacks.random_state import RandomState
from ugt_composer.training.callbacks.run_progress import RunProgress, results_of
from ugt_composer.training.callbacks.training_losses import TrainingLosses
from ugt_composer.training.composer_patches import StrategyTrainer
from ugt_composer.training.microbatch import GlobalCounts
from ugt_composer.training.run_length import RunLength
from ugt_composer.training.schedule import is_schedule_changed

log = logging.getLogger(__name__)


class UGTTrainer(StrategyTrainer):
    """Composer's Trainer with the operations of a run. Created by `build_trainer`."""

    def __init__(
        self,
        config: Config,
        length: RunLength,
        strategy: Strategy,
        checkpoints: Checkpoints,
        losses: TrainingLosses,
        watchdog: Watchdog,
        **kwargs: Any,
    ):
        self.config = config
        self.length = length
        self.checkpoints = checkpoints
        self.watchdog = watchdog
        self.random_state = RandomState()
        checkpoints.before_save = losses.check
        grace, timeout = config.preemption.grace, watchdog.timeout
        self.preemption = Preemption(
            checkpoints, self.random_state, grace, timeout, self._finish_batch, self._evaluate_start
        )
        self.dataset_position: dict[str, Any] | None = None  # of the checkpoint that the run resumed from
        self.until_closed = ExitStack()  # the lock of the save folder
        self.start_summary: list[str] = []  # lines about the run, for people to read
        super().__init__(
            strategy,
            GlobalCounts(timeout),
            losses.keep,
            callbacks=[
                *kwargs.pop("callbacks"),
                losses,
                self.random_state,
                checkpoints,
                *([] if checkpoints.average is None else [checkpoints.average]),
                self.preemption,
                Progress(watchdog),
            ],
            **kwargs,
        )
        # `Checkpoints` saves these in a form that does not depend on the strategy.
        for name in ("model", "optimizers", "scaler"):
            self.state.serialized_attributes.remove(name)

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Runs Composer's fit from the next sample, in a new run, a resumed one, or one that is trained in pieces.

        The position comes from Composer's timestamp alone. Streaming's own position is an epoch behind at the end of an
        epoch, and would start another epoch if fit is called again within one.
        """
        self.watchdog.watch()
        dataset, timestamp = self.state.train_dataloader.dataset, self.state.timestamp  # type: ignore[union-attr]
        # At the end of an epoch, padding that gives all ranks equally many rows may take the count beyond the epoch.
        sample = min(timestamp.sample_in_epoch.value, dataset.epoch_size)
        position = self.dataset_position or dataset.state_dict(0, from_beginning=True)
        dataset.next_epoch = timestamp.epoch.value
        dist.barrier()  # the ranks of a machine share the position: none may set it while another one is reading
        dataset.load_state_dict({**position, "epoch": timestamp.epoch.value, "sample_in_epoch": sample})
        dist.barrier()
        self.metrics_file.continue_from(timestamp.batch.value)
        try:
            with warnings.catch_warnings():
                # A run that resumes at the end of an epoch trains no batch in it.
                warnings.filterwarnings("ignore", message="No batches were trained")
                warnings.filterwarnings("ignore", message="The warmup duration is 0")  # as `scheduler.t_warmup` says
                super().fit(*args, **kwargs)
        except Exception as error:
            self.watchdog.rest()
            self.checkpoints.writer.wait()
            batch, rows = self.state.timestamp.batch.value, self.state.timestamp.sample.value
            self.checkpoints.events.add(FAILED, batch, rows=rows, reason=first_line(error))
            if (missing := self.checkpoints.upload_within(self.config.preemption.grace)) is not None:
                log.warning(missing)
            raise
        finally:
            self.run_progress.end()
            self.watchdog.rest()
            self.preemption.give_signals_back()

    def close(self) -> None:
        """Runs Composer's close and finishes all uploads; afterwards another run may write into the save folder.

        Raises:
            RunError: on rank 0, with `checkpoint.sharded` on all ranks, if files are missing from the store.
        """
        super().close()
        self.state.train_dataloader.dataset.leave_iteration()  # type: ignore[union-attr]
        try:
            self.checkpoints.finish_uploads()
        finally:
            self.until_closed.close()

    def _evaluate_start(self) -> None:
        """Evaluates the model that the run starts from, if `save_best_if` needs its values. Training continues with the
        random state from before it, so that its losses are those of a run without it."""
        if self.state.timestamp.batch.value > 0 or not self.checkpoints.guard.needs_start:
            return
        before = reproducibility.get_rng_state()
        self._run_evaluators(Event.FIT_START)
        self.engine.run_event(Event.BATCH_CHECKPOINT)  # writes the line of batch 0
        reproducibility.load_rng_state(before)

    def _finish_batch(self) -> None:
        """Finishes a batch that was saved during its evaluation: the evaluation from its start, and what follows it."""
        self._run_evaluators(Event.BATCH_END)
        self.engine.run_event(Event.BATCH_CHECKPOINT)

    @property
    def metrics_file(self) -> MetricsFile:
        """The logger that writes `metrics.jsonl`."""
        return next(one for one in self.logger.destinations if isinstance(one, MetricsFile))

    @property
    def run_progress(self) -> RunProgress:
        """The logger that prints the progress of the run."""
        return next(one for one in self.logger.destinations if isinstance(one, RunProgress))

    def last_results(self) -> list[str]:
        """Of the evaluation after the last batch, such as "recall@10 0.0417"; empty if this process made none."""
        progress = self.run_progress
        is_current = progress.evaluated_at == self.state.timestamp.batch.value
        return results_of(progress.evaluation, progress.metrics) if is_current else []

    @property
    def is_finished(self) -> bool:
        """Whether the run has reached its end, or has ended early because of `save_best_if`."""
        return self.state.timestamp.batch.value >= self.length.total or self.ended_because is not None

    @property
    def ended_because(self) -> str | None:
        """Why the run has ended before `max_duration`; None if it has not."""
        guard = self.checkpoints.guard
        return guard.about_end() if guard.is_hopeless else None

    def train(self) -> None:
        """Trains to the end of the run (`max_duration`), or until `save_best_if` ends it.

        A run that has ended is not trained again; a line on stderr says so.
        """
        if not self.is_finished:
            self.state.max_duration = self.config.max_duration
            self.fit()
            return
        if dist.get_global_rank() == 0:
            folder, batch, why = self.config.save_folder, self.state.timestamp.batch.value, self.ended_because
            trained = f"already trained for {self.config.max_duration}; nothing to do"
            print_line(f"{folder}: {trained if why is None else f'ended after batch {batch}, because {why}'}")
        # The batch's line is missing if the run was killed after the last checkpoint.
        self.metrics_file.continue_from(self.state.timestamp.batch.value, is_finished=True)

    def train_epoch(self) -> None:
        """Trains one more epoch, on the learning-rate curve of the whole run."""
        self.fit(duration="1ep")

    def evaluate(self) -> dict[str, float]:
        """Evaluates on `data.eval`. Returns metrics by their names in the log, except those that no row counts for.

        Raises:
            UserError: the config has no evaluation data.
        """
        if not self.state.evaluators:
            raise UserError("data.eval.local is missing; expected a folder of MDS shards to evaluate on")
        self.eval()
        values = {name: float(metric.compute()) for name, metric in self.state.eval_metrics[EVAL_LABEL].items()}
        return {f"metrics/{EVAL_LABEL}/{name}": value for name, value in values.items() if value == value}

    def save_checkpoint(self, path: str = "checkpoint.pt", **kwargs: Any) -> str:  # type: ignore[override]
        """Writes everything that a resumed run needs to one file, under any strategy. Returns its path."""
        save_on_rank_0(Path(path).parent, lambda: Path(path).parent.mkdir(parents=True, exist_ok=True))
        self.checkpoints.write(Path(path), self.state)
        return str(path)

    def load_checkpoint(self, path: str | Path) -> None:
        """Resumes from a file of `save_checkpoint` or of the save folder: next sample, same random state.

        Raises:
            UserError: the file cannot be read, or belongs to a run with other data, batches or model.
        """
        checkpoint = find_on_rank_0(lambda: (Path(path), read_checkpoint(path)))
        assert checkpoint is not None
        self._restore(*checkpoint)

    def resume(self) -> bool:
        """Resumes from the newest valid checkpoint of the save folder. False if there is none.

        If `checkpoint.remote` had a newer one, `build_trainer` has already downloaded it.
        """
        checkpoint = find_on_rank_0(lambda: newest_checkpoint(self.config.save_folder))
        if checkpoint is not None:
            path, content = checkpoint
            self._restore(Path(self.config.save_folder) / path.name, content)  # of this machine
            self.metrics_file.is_resumed = True
        return checkpoint is not None

    def _restore(self, path: Path, content: dict[str, Any]) -> None:
        catalogue = self.checkpoints.facts.get(FINGERPRINT)
        changed = check_resumable(path, content, self.config, self.checkpoints.data, catalogue)
        average = self.checkpoints.average
        schedule = is_schedule_changed(path, content, self.config, self.length)
        restored = restore(
            path,
            content,
            self.config,
            self.strategy,
            self.state,
            self.logger,
            changed,
            schedule,
            None if average is None else average.take_weights,
        )
        if (warning := self.checkpoints.guard.resume()) is not None and dist.get_global_rank() == 0:
            log.warning(warning)
        self.checkpoints.continue_selection(restored.save_best_on, self.is_finished)
        self.dataset_position = restored.dataset_position
        self.random_state.pending = restored.random_state
