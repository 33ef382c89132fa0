"""Composer's Trainer without its waits for the device, and with a strategy in the place of its own parallelism.

Knows nothing of UGT. `PATCHES` names every private method that is overridden or called; `ugt_composer/patches.py` says
how an upgrade of Composer is noticed, `docs/architecture.md` what each one is worth.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any

from composer import Trainer
from composer.core import Event, TrainerMode
from composer.utils import dist
from torch import Tensor

from ugt_composer.parallelism.strategy import Strategy
from ugt_composer.patches import Patch
from ugt_composer.training.microbatch import GlobalCounts, Uncopied

TOTAL = "loss/train/total"


class StrategyTrainer(Trainer):
    """
    Args:
        strategy: places and steps the model; see `Strategy`.
        counts: sums what a batch holds over the ranks, on the CPU.
        keep_losses: called with the number of each batch and its losses, tensors on the device; None of them is read
            back here.
        kwargs: as of Composer's Trainer.
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
        """With a closure Composer reads the loss back from the device in every step."""
        return False

    def _use_grad_scaling(self, precision: Any, scaler: Any) -> bool:
        return self.strategy.scaler is not None or super()._use_grad_scaling(precision, scaler)

    def _wrap_model_for_distributed(self, model: Any, optimizers: Any) -> None:
        self.state.model = self.strategy.module  # type: ignore[assignment]

    def _iter_dataloader(self, trainer_mode: TrainerMode) -> Iterator[Any]:
        """Composer's, without its question, at each batch, to the device whether another rank has run out of batches:
        all ranks have equally many, and one that fails ends the job."""
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
        """Runs Composer's on a batch that is moved to the device as a whole, and returns no losses, so that Composer
        does not synchronise with the device to log them; `keep_losses` gets them."""
        self.state.batch = self.counts.add(self.state.batch, self.state.device)
        losses = super()._train_batch(use_grad_scaling)
        if losses:  # None where a scaler has skipped the step
            self._keep_losses(self.state.timestamp.batch.value + 1, losses)
        return {}

    def _train_microbatches(
        self, microbatches: Sequence[Any], total_loss_dict: dict[str, Tensor], ddp_sync: bool = True
    ) -> Tensor:
        """Composer's, except that the batch is on the device already, and that the mean number of rows per rank comes
        from the CPU: Composer moves each microbatch by itself and reads that mean back from the device."""
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
        """Composer's sums on the device and reads the sums back. Here the CPU knows them: of a training batch they were
        summed with its other counts, an evaluation gives every rank equally many rows."""
        in_training = self.state.dataloader is self.state.train_dataloader
        rows = self.counts.rows if in_training else int(num_samples) * dist.get_world_size()
        return rows, num_tokens, batch_time


VERSION = "0.32.1"
TRAINER = "composer.trainer.trainer:Trainer."
PATCHES = [
    Patch(
        TRAINER + "_wrap_model_for_distributed",
        "replaced: the strategy's module is the model",
        "Composer would wrap it in its own FSDP, which cannot write weights that any strategy reads",
        VERSION,
        "a public way to hand Composer a model that is distributed already",
        ("dc2164ce81ec",),
    ),
    Patch(
        TRAINER + "_use_closures",
        "replaced: no closures",
        "with one, Composer calls .item() on the loss in every step",
        VERSION,
        "a public option of the Trainer",
        ("f8e8d08988ae",),
    ),
    Patch(
        TRAINER + "_use_grad_scaling",
        "extended: also where the strategy has a loss scaler of its own",
        "DeepSpeed's engine scales the loss, and has to do its own backward pass",
        VERSION,
        "a public option of the Trainer",
        ("3aa7430c5f45",),
    ),
    Patch(
        TRAINER + "_iter_dataloader",
        "replaced: no all-reduce on the device, nor a read of it, before each batch",
        "two waits for the device a batch, to learn that no rank has run out of batches",
        VERSION,
        "an option of Composer for loaders of equal length",
        ("970ae649c7dc",),
    ),
    Patch(
        TRAINER + "_train_batch",
        "extended: the batch gets its counts over all ranks, and its losses are not returned",
        "Composer reads every loss back from the device in every step, to log it",
        VERSION,
        "losses that Composer's loggers read when a log line is due",
        ("787aff3a7f53",),
    ),
    Patch(
        TRAINER + "_train_microbatches",
        "replaced: the number of rows over the ranks is known, the strategy hears of the last microbatch",
        "one more all-reduce and wait for the device a batch; FSDP would reduce gradients once a microbatch",
        VERSION,
        "as for _train_batch, and an event before each microbatch that knows which is the last",
        ("3ee43a3fb726",),
    ),
    Patch(
        TRAINER + "_train_microbatch",
        "called by _train_microbatches",
        "forward and backward pass of a microbatch are Composer's own",
        VERSION,
        "as for _train_microbatches",
        ("4b840744cb17",),
    ),
    Patch(
        TRAINER + "_accumulate_time_across_ranks",
        "replaced: rows are counted on the CPU",
        "two collectives on the device and three reads of it a batch",
        VERSION,
        "counts that Composer sums on the CPU",
        ("a7a8ddb3e21b",),
    ),
    Patch(
        TRAINER + "_run_evaluators",
        "called: an evaluation that a preemption cut off is made when the run resumes",
        "the resumed run would lack that evaluation",
        VERSION,
        "a public way to run the evaluators that are due at an event",
        ("e1a5002e8dfa",),
    ),
]
