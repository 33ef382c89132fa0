"""The random state of a resumed run, set where the killed run would have had it."""

from typing import Any

from composer import Callback, Logger, State
from composer.utils import reproducibility


class RandomState(Callback):
    """Sets the checkpoint's random state once, at the first batch or epoch end after a resume.

    Composer reseeds while it builds and leaves the state alone mid-epoch when the data set resumes itself; the epoch's
    end counts too, for a checkpoint of an epoch's last batch.
    """

    def __init__(self) -> None:
        self.pending: list[dict[str, Any]] | None = None

    def batch_start(self, state: State, logger: Logger) -> None:
        self.restore()

    def epoch_end(self, state: State, logger: Logger) -> None:
        self.restore()

    def restore(self) -> None:
        """Sets what is pending, if it has not been."""
        if self.pending is not None:
            reproducibility.load_rng_state(self.pending)
            self.pending = None
