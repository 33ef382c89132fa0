"""After a preemption signal, a job saves and exits with the status that asks for it to be run again."""

import time
from collections.abc import Callable
from typing import Any, NoReturn

from composer import Callback, Logger, State
from composer.utils import dist, reproducibility

from ugt_composer.checkpoint.run_events import PREEMPTED
from ugt_composer.checkpoint.save_folder import batch_of, list_checkpoints
from ugt_composer.checkpoint.whole_state import from_rank_0
from ugt_composer.errors import EXIT_PREEMPTED
from ugt_composer.job.cpu_all_reduce import CpuAllReduce
from ugt_composer.job.signals import FRACTION_OF_GRACE, warning
from ugt_composer.terminal import end_live_line
from ugt_composer.training.callbacks.checkpoints import Checkpoints
from ugt_composer.training.callbacks.random_state import RandomState
from ugt_composer.training.intervals import is_last_batch

EXIT_SECONDS = 1.0  # of the grace, which uploads leave for the exit


class Preemption(Callback):
    """On SIGTERM, SIGINT or SIGUSR1 to any rank, all ranks finish the batch, save and exit with status 75.

    An evaluation ends after its current batch, and the resumed run repeats it from its start. If the grace is too short
    for a save, the newest checkpoint stays the one to resume from. A second signal ends the process at once.

    Args:
        grace: seconds from the signal to the exit.
        dist_timeout: returns the seconds to wait for a rank that does not answer.
        finish_batch: runs the evaluation that the saved batch still lacks, and what follows it.
        evaluate_start: runs the evaluation before the first batch, if there is one.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        random_state: RandomState,
        grace: float,
        dist_timeout: Callable[[], float],
        finish_batch: Callable[[], None],
        evaluate_start: Callable[[], None],
    ):
        self.checkpoints = checkpoints
        self.random_state = random_state
        self.grace = grace
        self.dist_timeout = dist_timeout
        self.finish_batch = finish_batch
        self.evaluate_start = evaluate_start
        self.all_reduce: CpuAllReduce | None = None
        self.is_leaving = False
        self.saved_batch: int | None = None
        self.evaluation_left = False  # the saved batch still has to be evaluated
        self._is_untrained = False
        # None outside an evaluation, or in one that must not be interrupted.
        self._random_state_before_evaluation: list[dict[str, Any]] | None = None
        self._batch_seconds = self._batch_started = 0.0
        self._listens = False

    def state_dict(self) -> dict[str, Any]:
        return {"evaluation_left": self.evaluation_left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.evaluation_left = state["evaluation_left"]

    def fit_start(self, state: State, logger: Logger) -> None:
        self.is_leaving, self.saved_batch, self._batch_started = False, None, 0.0
        if self.all_reduce is None:
            self.all_reduce = CpuAllReduce(self.dist_timeout)
        self.checkpoints.after_save = self._update_warning
        self._listens = not warning.is_listening
        warning.listen()
        warning.grace, warning.training, warning.standing = self.grace, True, self._newest_checkpoint()
        if self.evaluation_left:
            self.evaluation_left = False
            self.random_state.restore()
            self.finish_batch()
            self.random_state.pending = reproducibility.get_rng_state()
        self.evaluate_start()

    def give_signals_back(self) -> None:
        """Restores the signal handlers from before fit, however fit ended."""
        warning.training = False
        if self._listens:
            warning.stop()

    def batch_start(self, state: State, logger: Logger) -> None:
        self._batch_started = time.monotonic()
        self._begin_all_reduce()

    def batch_end(self, state: State, logger: Logger) -> None:
        self._batch_seconds = time.monotonic() - self._batch_started

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        is_saved = self.checkpoints.every.is_due(state)
        if self._batch_started and not is_last_batch(state):  # not while `finish_batch` runs
            self._save_if_warned(state, is_saved)

    def before_dataloader(self, state: State, logger: Logger) -> None:
        # The earliest event at which every logger has written the batch.
        if self.is_leaving:
            self._exit(state)

    def eval_before_all(self, state: State, logger: Logger) -> None:
        if self._batch_started:
            self._all_reduce.result()  # that of the training batch; each evaluation batch begins its own
        if warning.training and not is_last_batch(state):  # a run whose last batch is saved counts as finished
            self._random_state_before_evaluation = reproducibility.get_rng_state()

    def eval_batch_start(self, state: State, logger: Logger) -> None:
        if self._random_state_before_evaluation is not None:
            self._begin_all_reduce()

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        if self._random_state_before_evaluation is None:
            return
        if self._is_warned():
            # The state that an uninterrupted evaluation starts from, because the resumed run repeats the evaluation.
            # The one before the first batch is part of a new run: nothing is saved.
            reproducibility.load_rng_state(self._random_state_before_evaluation)
            self.evaluation_left = True
            self._is_untrained = state.timestamp.batch.value == 0
            self._save_if_warned(state, is_saved=False)
            self._exit(state)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self._random_state_before_evaluation = None

    def _begin_all_reduce(self) -> None:
        age = 0.0 if warning.first_at is None else max(time.monotonic() - warning.first_at, 1e-9)
        self._all_reduce.begin(age, self._batch_seconds, self.checkpoints.save_seconds)

    def _is_warned(self) -> bool:
        return self._all_reduce.result()[0] > 0

    def _save_if_warned(self, state: State, is_saved: bool) -> None:
        age, batch_seconds, save_seconds = self._all_reduce.result()
        if not age:
            return
        self.is_leaving = warning.leaving = True
        warning.start_clock(age)
        self.checkpoints.writer.finish()  # an earlier save, or the one of this batch
        # These numbers are the same on every rank, so that all ranks save or none.
        if (
            not is_saved
            and not self._is_untrained
            and age + batch_seconds + save_seconds < FRACTION_OF_GRACE * self.grace
        ):
            self.checkpoints.save(state)
            self.checkpoints.writer.finish()
            is_saved = True
        if is_saved:
            self.saved_batch = state.timestamp.batch.value
            warning.standing = self._newest_checkpoint()

    def _exit(self, state: State) -> NoReturn:
        batch, rows = state.timestamp.batch.value, state.timestamp.sample.value
        self.checkpoints.events.add(PREEMPTED, batch, rows=rows, saved_batch=self.saved_batch)
        missing_uploads = self._upload()
        if dist.get_global_rank() == 0:
            done = f"saved batch {self.saved_batch}"
            if self._is_untrained:
                done = "no batch was trained yet"
            elif self.saved_batch is None:
                done = f"the grace of {self.grace:g} s is too short for a save, {self._newest_checkpoint()}"
            if missing_uploads is not None:
                done += f"; {missing_uploads}"
            end_live_line()
            print(f"preempted: {done}; run the same command again to resume", flush=True)
        raise SystemExit(EXIT_PREEMPTED)

    def _upload(self) -> str | None:
        """Uploads until the grace is nearly over. All ranks wait for rank 0, as the launcher ends all when one ends."""
        if self.checkpoints.config.checkpoint.remote is None:
            return None
        assert warning.first_at is not None
        end = warning.first_at + FRACTION_OF_GRACE * self.grace - EXIT_SECONDS
        return from_rank_0(self.checkpoints.upload_within(end - time.monotonic()))

    def _update_warning(self) -> None:
        warning.standing = self._newest_checkpoint()

    def _newest_checkpoint(self) -> str:
        newest = next(iter(list_checkpoints(self.checkpoints.folder)), None)
        return "nothing was saved" if newest is None else f"the newest checkpoint is that of batch {batch_of(newest)}"

    @property
    def _all_reduce(self) -> CpuAllReduce:
        assert self.all_reduce is not None  # made when fit starts
        return self.all_reduce
