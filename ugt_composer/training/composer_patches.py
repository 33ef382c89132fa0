"""Composer's Trainer without its synchronisations with the device, and with a strategy instead of its own parallelism.

Independent of UGT. `PATCHES` names every private method that is overridden or called; `ugt_composer/patches.py`
explains how an upgrade of Composer is detected, `docs/architecture.md` what each patch is worth.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any

import torch
from composer import Trainer
from composer.core import Event, TrainerMode
from composer.utils import dist
from torch import Tensor
from torchmetrics import Metric

from ugt_composer.parallelism.strategy import Strategy
from ugt_composer.patches import Patch
from ugt_composer.training.microbatch import GlobalCounts, Uncopied

TOTAL = "loss/train/total"


class StrategyTrainer(Trainer):
    """
    Args:
        strategy: places and steps the model; see `Strategy`.
        counts: adds up the counts of a batch over the ranks, on the CPU.
        keep_losses: called with the number of each batch and its losses: tensors on the device, not read back here.
        kwargs: passed to Composer's Trainer.
    """

    def __init__(
        self,
        strategy: Strategy,
        counts: GlobalCounts,
        keep_losses: Callable[[int, Mapping[str, Tensor]], None],
        **kwargs: Any,
    ):
        self.strategy = strategy
        self.counts = counts
        self._keep_losses = keep_losses
        super().__init__(**kwargs)
        if strategy.scaler is not None:
            self.state.scaler = strategy.scaler

    def _use_closures(self) -> bool:
        """False: with a closure, Composer reads the loss back from the device in every step."""
        return False

    def _use_grad_scaling(self, precision: Any, scaler: Any) -> bool:
        return self.strategy.scaler is not None or super()._use_grad_scaling(precision, scaler)

    def _wrap_model_for_distributed(self, model: Any, optimizers: Any) -> None:
        self.state.model = self.strategy.module  # type: ignore[assignment]

    def _iter_dataloader(self, trainer_mode: TrainerMode) -> Iterator[Any]:
        """Does what Composer's does, but does not find out, before each batch and through the device, whether another
        rank has run out of batches: all ranks have equally many, and a rank that fails ends the job."""
        assert self.state.dataloader is not None
        length, trains = self.state.dataloader_len, trainer_mode == TrainerMode.TRAIN
        batches = islice(self.state.dataloader, None if length is None else int(length))
        while True:
            if trains:
                self.engine.run_event(Event.BEFORE_DATALOADER)
            try:
                batch = next(batches)
            except StopIteration:
                if trains:
                    self.engine.run_marker_only_event(Event.AFTER_DATALOADER)
                return
            yield batch

    def _train_batch(self, use_grad_scaling: bool) -> dict[str, Tensor]:
        """Runs Composer's `_train_batch` on a batch that is moved to the device as a whole, with the number of the
        step. Returns no losses, so that Composer does not synchronise with the device to log them; `keep_losses` gets
        them."""
        step = self.state.device.tensor_to_device(torch.tensor(self.state.timestamp.batch.value))
        self.state.batch = {**self.counts.add(self.state.batch, self.state.device), "step": step}
        losses = super()._train_batch(use_grad_scaling)
        if losses:  # there are none if a scaler has skipped the step
            self._keep_losses(self.state.timestamp.batch.value + 1, losses)
        return {}

    def _train_microbatches(
        self, microbatches: Sequence[Any], total_loss_dict: dict[str, Tensor], ddp_sync: bool = True
    ) -> Tensor:
        """Does what Composer's does, but the batch is on the device already and the mean number of rows per rank is
        known on the CPU. Composer moves each microbatch by itself and reads that mean back from the device."""
        state, scaler = self.state, self.state.scaler
        assert scaler is not None  # made when fit starts
        scales = self._use_grad_scaling(state.precision, scaler)
        self.engine.run_event(Event.BEFORE_TRAIN_BATCH)
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)
        mean_rows = self.counts.rows / dist.get_world_size()
        batch = state.batch
        for number, piece in enumerate(microbatches, start=1):
            state.batch = Uncopied(piece)
            is_last = number == len(microbatches)
            self.strategy.before_microbatch(is_last)
            for name, loss in self._train_microbatch(scales, mean_rows, is_last).items():
                key = f"loss/train/{name}"
                total_loss_dict[key] = total_loss_dict.get(key, loss.new_zeros(1)) + loss
        state.batch = batch
        if scales:
            for optimizer in state.optimizers:
                scaler.unscale_(optimizer)
        self.engine.run_event(Event.AFTER_TRAIN_BATCH)
        return total_loss_dict[TOTAL]

    def _accumulate_time_across_ranks(
        self, num_samples: int | float, num_tokens: int, batch_time: timedelta
    ) -> tuple[int, int, timedelta]:
        """Composer adds up the rows on the device and reads the sum back. Here it is known on the CPU: the rows of a
        training batch are added up together with its other counts, and an evaluation batch has equally many rows on
        every rank."""
        in_training = self.state.dataloader is self.state.train_dataloader
        rows = self.counts.rows if in_training else int(num_samples) * dist.get_world_size()
        return rows, num_tokens, batch_time

    def _compute_and_log_metrics(self, dataloader_label: str, metrics: dict[str, Metric]) -> None:
        """Does what Composer's does, but leaves out metrics that are NaN, because no row counts for them."""
        counted = {name: metric for name, metric in metrics.items() if not math.isnan(float(metric.compute()))}
        super()._compute_and_log_metrics(dataloader_label, counted)


TRAINER = "composer.trainer.trainer:Trainer."
PATCHES = [
    Patch(
        TRAINER + "_wrap_model_for_distributed",
        "replaced: the strategy's module is the model",
        "Composer would wrap the model in its own FSDP, which cannot save weights in a form that every strategy "
        "can load",
        "a public way to give Composer an already distributed model",
        ("dc2164ce81ec",),
    ),
    Patch(
        TRAINER + "_use_closures",
        "replaced: no closures",
        "with a closure, Composer calls .item() on the loss in every step",
        "a public option of the Trainer",
        ("f8e8d08988ae",),
    ),
    Patch(
        TRAINER + "_use_grad_scaling",
        "extended: also true if the strategy has its own loss scaler",
        "DeepSpeed's engine scales the loss and has to run the backward pass itself",
        "a public option of the Trainer",
        ("3aa7430c5f45",),
    ),
    Patch(
        TRAINER + "_iter_dataloader",
        "replaced: no all-reduce on the device and no read of its result before each batch",
        "two waits for the device per batch, to find out that no rank has run out of batches",
        "an option of Composer for loaders of equal length",
        ("970ae649c7dc",),
    ),
    Patch(
        TRAINER + "_train_batch",
        "extended: adds the counts over all ranks to the batch, and does not return the losses",
        "Composer reads every loss back from the device in every step to log it",
        "losses that Composer's loggers read when a log line is due",
        ("787aff3a7f53",),
    ),
    Patch(
        TRAINER + "_train_microbatches",
        "replaced: the number of rows over all ranks is known, and the strategy is told which microbatch is the last",
        "one more all-reduce and one more wait for the device per batch; FSDP would reduce gradients in every "
        "microbatch",
        "as for _train_batch, and an event before each microbatch that says whether it is the last",
        ("3ee43a3fb726",),
    ),
    Patch(
        TRAINER + "_train_microbatch",
        "called by _train_microbatches",
        "forward and backward pass of a microbatch are Composer's own",
        "as for _train_microbatches",
        ("4b840744cb17",),
    ),
    Patch(
        TRAINER + "_accumulate_time_across_ranks",
        "replaced: rows are counted on the CPU",
        "two collectives on the device and three reads from it per batch",
        "counts that Composer sums on the CPU",
        ("a7a8ddb3e21b",),
    ),
    Patch(
        TRAINER + "_compute_and_log_metrics",
        "extended: metrics that are NaN, which no row counts for, are not logged",
        "console and loggers would show `preference_accuracy: nan` where no row has a pair",
        "metrics that may have no value",
        ("a3ad0e89574f",),
    ),
    Patch(
        TRAINER + "_run_evaluators",
        "called: an evaluation that a preemption interrupted is run when the run resumes",
        "that evaluation would be missing from the resumed run",
        "a public way to run the evaluators that are due at an event",
        ("e1a5002e8dfa",),
    ),
]
