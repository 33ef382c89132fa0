"""What a person sees of a run: how far it is, its last logged loss, speed, time left, and the evaluations' results."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

from composer import Logger, State, TimeUnit
from composer.loggers import LoggerDestination
from composer.utils import dist

from ugt_composer.terminal import LINE_SECONDS, duration, end_live_line, live_line, print_line
from ugt_composer.training.best_metric import PREFIX
from ugt_composer.training.best_model import saved_best
from ugt_composer.training.callbacks.metrics_file import sort_metrics
from ugt_composer.training.intervals import Every, is_last_batch

LOSS, SPEED = "loss/train/total", "metrics/train/samples/s"
# Between two lines about training where stderr is no terminal. `log_interval` alone would not do: it counts batches,
# which take between milliseconds and minutes.
TRAINING_LINE_SECONDS = 10.0


class RunProgress(LoggerDestination):
    """On rank 0's stderr: a line that is updated in place, if that is a terminal. Elsewhere a line each `log_interval`,
    but at most one in TRAINING_LINE_SECONDS. The result of each evaluation is a line of its own on both.

    Loss and speed are those that were logged last: nothing is read from the device for it.

    Args:
        total: batches of the run.
        log_interval: of the run's loggers.
        metrics: names of the evaluation metrics to show, without "metrics/eval/".
        best: the folder of the best model.
        shows_progress: `loggers.progress_bar`.
        shows_values: `loggers.console`: each `log_interval`, and after an evaluation, all values, one per line.
    """

    def __init__(
        self,
        total: int,
        log_interval: str,
        metrics: Sequence[str],
        best: Path,
        shows_progress: bool = True,
        shows_values: bool = False,
    ):
        self.total = total
        self.every = Every(log_interval)
        self.metrics = metrics
        self.best = best
        self.shows_progress = shows_progress
        self.shows_values = shows_values
        self.is_shown = dist.get_global_rank() == 0 and (shows_progress or shows_values)
        self.values: dict[str, float] = {}
        self.evaluation: dict[str, float] = {}
        self.evaluated_at: int | None = None  # batch of the last evaluation
        self._line = live_line() if self.is_shown and shows_progress else None
        self._start = 0  # the batch that training starts after
        self._first_end = 0.0  # when this process's first batch ended, which waits for data workers and compilation
        self._printed_at = self._evaluation_began = 0.0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.is_shown:
            sort_metrics(metrics, self.values, self.evaluation)

    def fit_start(self, state: State, logger: Logger) -> None:
        self.values, self._printed_at = {}, 0.0
        self._start = state.timestamp.batch.value
        if self._line is not None:
            self._line.show(self._place(state), self._fraction(state), "starting", at_once=True)

    def batch_end(self, state: State, logger: Logger) -> None:
        if not self.is_shown:
            return
        batch, now = state.timestamp.batch.value, time.monotonic()
        if batch == self._start + 1:
            self._first_end = now
        speed = ", ".join([*self._logged(), *self._left(batch, now)])
        if self._line is not None:
            self._line.show(self._place(state), self._fraction(state), speed)
        if not self.every.is_logged(state):
            return
        is_due = self._line is None and (is_last_batch(state) or now - self._printed_at >= TRAINING_LINE_SECONDS)
        if self.shows_values or is_due:
            self._printed_at = now
            print_line(f"{self._place(state)}: {speed}")
        if self.shows_values:
            _print_values(self.values)

    def eval_start(self, state: State, logger: Logger) -> None:
        self.evaluation, self._evaluation_began = {}, time.monotonic()
        self._printed_at = self._evaluation_began
        self._show_evaluation(state)

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        self._show_evaluation(state)

    def _show_evaluation(self, state: State) -> None:
        if not self.is_shown or not self.shows_progress:
            return
        done, total, now = state.eval_timestamp.batch.value, state.dataloader_len, time.monotonic()
        number = "" if total is None else f" of {total.value:,}"
        left = ""
        if total is not None and done > 0:
            left = f"{duration((total.value - done) * (now - self._evaluation_began) / done)} left"
        text = f"batch {state.timestamp.batch.value:,}: evaluating, batch {done:,}{number}"
        if self._line is not None:
            self._line.show(text, done / total.value if total else 0.0, left, at_once=done == 0)
        elif now - self._printed_at >= LINE_SECONDS:
            self._printed_at = now
            print_line(", ".join(filter(None, [text, left])))

    def eval_end(self, state: State, logger: Logger) -> None:
        if not self.is_shown:
            return
        end_live_line()
        batch, seconds = state.timestamp.batch.value, time.monotonic() - self._evaluation_began
        self.evaluated_at = batch
        results = ", ".join(results_of(self.evaluation, self.metrics))
        selected = saved_best(self.best)
        is_best = batch > 0 and selected is not None and selected.batch == batch
        print_line(f"batch {batch:,}: evaluated in {duration(seconds)}: {results}{'; best so far' if is_best else ''}")
        if self.shows_values:
            _print_values(self.evaluation)

    def fit_end(self, state: State, logger: Logger) -> None:
        self.end()

    def end(self) -> None:
        """Removes the line that is updated in place."""
        if self._line is not None:
            end_live_line()

    def _place(self, state: State) -> str:
        """Such as "epoch 2/3, batch 21/48"; at the end of a batch."""
        epoch, length = state.timestamp.epoch.value + 1, state.max_duration
        of_epochs = f"/{length.value}" if length is not None and length.unit == TimeUnit.EPOCH else ""
        total = f"{self.total:,}"
        return f"epoch {epoch}{of_epochs}, batch {state.timestamp.batch.value:{len(total)},}/{total}"

    def _fraction(self, state: State) -> float:
        return state.timestamp.batch.value / max(self.total, 1)

    def _logged(self) -> list[str]:
        texts = []
        if LOSS in self.values:
            texts.append(f"loss {float(self.values[LOSS]):.4f}")
        if SPEED in self.values:
            texts.append(f"{float(self.values[SPEED]):,.0f} rows/s")
        return texts

    def _left(self, batch: int, now: float) -> list[str]:
        """The time left, if the batches up to the end take as long as those since the first one, with evaluations."""
        batches = batch - self._start - 1
        if batches < 1 or batch >= self.total:
            return []
        return [f"{duration((self.total - batch) * (now - self._first_end) / batches)} left"]


def results_of(evaluation: dict[str, float], metrics: Sequence[str]) -> list[str]:
    """Such as ["loss 3.2292", "recall@10 0.0417"], of those metrics that the evaluation has."""
    values = {name: float(evaluation[PREFIX + name]) for name in metrics if PREFIX + name in evaluation}
    return [f"{name} {value:.4f}" for name, value in values.items() if math.isfinite(value)]


def shown_metrics(save_best_on: str | None, k_values: Sequence[int]) -> list[str]:
    """The evaluation metrics that a line has room for: the loss, what selects the best model, and one ranking metric
    beside it."""
    k = 10 if 10 in k_values else max(k_values)
    names = ["loss", save_best_on or f"ndcg@{k}", f"recall@{k}", "preference_accuracy"]
    return list(dict.fromkeys(names))


def _print_values(values: dict[str, float]) -> None:
    for name, value in values.items():
        if math.isfinite(float(value)):
            print_line(f"  {name}: {float(value):.6g}")
