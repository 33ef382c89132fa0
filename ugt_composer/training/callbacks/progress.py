"""Reports progress to the watchdog."""

from composer import Callback, Logger, State

from ugt_composer.job.watchdog import Watchdog


class Progress(Callback):
    """Each step of a training and of an evaluation counts as progress; an evaluation outside `fit` is watched too."""

    def __init__(self, watchdog: Watchdog):
        self.watchdog = watchdog

    def before_dataloader(self, state: State, logger: Logger) -> None:
        self.watchdog.progress_in_training()

    def batch_start(self, state: State, logger: Logger) -> None:
        self.watchdog.progress_in_training()

    def before_forward(self, state: State, logger: Logger) -> None:
        self.watchdog.progress_in_training()

    def batch_end(self, state: State, logger: Logger) -> None:
        self.watchdog.trained_a_batch()

    def eval_batch_start(self, state: State, logger: Logger) -> None:
        self.watchdog.progress()

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        self.watchdog.progress()

    def eval_standalone_start(self, state: State, logger: Logger) -> None:
        self.watchdog.watch()

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        self.watchdog.rest()
