"""A callback that ends a run at a batch, as a machine that is lost or a scheduler would."""

import os
import signal
from pathlib import Path

from composer import Callback, Logger, State
from composer.utils import dist


class SignalAt(Callback):
    """Sends rank 0 a signal at the end of a batch, once: the file `marker` says that it was sent."""

    def __init__(self, batch: int, number: int, marker: str):
        self.batch, self.number, self.marker = batch, signal.Signals(number), Path(marker)

    def batch_end(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value == self.batch and dist.get_global_rank() == 0 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), self.number)


def signal_at(batch: int, number: signal.Signals, marker: Path) -> str:
    arguments = f"{{batch: {batch}, number: {number.value}, marker: {marker}}}"
    return f"callbacks={{tests.training.trackers.signal_at.SignalAt: {arguments}}}"
