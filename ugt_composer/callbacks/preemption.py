"""A warned job saves and says that it wants to be run again."""

import os
import signal
import threading
from typing import Any

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
        self.before: dict[signal.Signals, Any] = {}

    def fit_start(self, state: State, logger: Logger) -> None:
        self.signal_seen = self.saved = False
        if threading.current_thread() is threading.main_thread():  # no other may handle signals
            self.before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def give_signals_back(self) -> None:
        """Puts back the handlers that were there before fit, however fit ended."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

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
