"""Restores the random state of a resumed run."""

from typing import Any

from composer import Callback, Logger, State
from composer.utils import reproducibility


class RandomState(Callback):
    """Sets the checkpoint's random state once, at the first batch or epoch end after a resume.

    Composer reseeds while it builds the Trainer, and in the middle of an epoch it does not restore the state of a data
    set that resumes by itself. The end of an epoch matters for a checkpoint of its last batch.
    """

    def __init__(self) -> None:
        self.pending: list[dict[str, Any]] | None = None

    def batch_start(self, state: State, logger: Logger) -> None:
        self.restore()

    def epoch_end(self, state: State, logger: Logger) -> None:
        self.restore()

    def restore(self) -> None:
        """Sets the pending state, if there is one."""
        if self.pending is not None:
            reproducibility.load_rng_state(self.pending)
            self.pending = None
