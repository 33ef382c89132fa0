"""An epoch that ends early is an error, not a shorter epoch."""

from composer import Callback, Logger, State


class EpochLength(Callback):
    """Raises an error if an epoch had fewer batches than the data. It checks this package's own iteration over the
    rows, which raises every error itself."""

    def epoch_end(self, state: State, logger: Logger) -> None:
        assert state.previous_timestamp is not None
        expected, seen = state.dataloader_len, state.previous_timestamp.batch_in_epoch.value
        if expected is not None and seen < expected.value:
            raise RuntimeError(
                f"epoch {state.previous_timestamp.epoch.value} ended after {seen} of {expected.value} batches, "
                "although reading them raised no error: a bug in the data loader; please report it with this log"
            )
