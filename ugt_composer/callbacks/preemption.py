"""A warned job saves and says that it wants to be run again."""

import os
import signal

import torch
from composer import Callback, Logger, State
from composer.utils import dist

from ugt_composer.callbacks.checkpoints import Checkpoints
from ugt_composer.errors import EXIT_PREEMPTED
from ugt_composer.intervals import is_last_batch

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Preemption(Callback):
    """On SIGTERM, SIGINT or SIGUSR1 to any rank, all ranks finish the batch, save and exit with status 75.

    A second signal ends the process at once.
    """

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints
        self.signal_seen = False
        self.saved = False

    def fit_start(self, state: State, logger: Logger) -> None:
        for number in SIGNALS:
            signal.signal(number, self._note)

    def fit_end(self, state: State, logger: Logger) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        if is_last_batch(state) or not self._any_rank_saw_a_signal(state):
            return
        if not self.checkpoints.every.is_due(state):  # else this batch is saved already
            self.checkpoints.save(state)
        self.saved = True

    def before_dataloader(self, state: State, logger: Logger) -> None:
        # Not earlier: every logger has written the batch by now.
        if self.saved:
            if dist.get_global_rank() == 0:
                batch = state.timestamp.batch.value
                print(f"preempted: saved batch {batch}; run the same command again to go on", flush=True)
            raise SystemExit(EXIT_PREEMPTED)

    def _note(self, number: int, _) -> None:
        if self.signal_seen:
            os._exit(128 + number)
        self.signal_seen = True

    def _any_rank_saw_a_signal(self, state: State) -> bool:
        if dist.get_world_size() == 1:
            return self.signal_seen
        seen = state.device.tensor_to_device(torch.tensor([self.signal_seen], dtype=torch.uint8))
        dist.all_reduce(seen, reduce_operation="MAX")
        return bool(seen.item())
