"""When evaluation, checkpoints and log lines are due: at the end of a batch, in a resumed run at the same ones."""

from composer import State, Time, TimeUnit
from composer.core import Event


def is_last_batch_of_epoch(state: State) -> bool:
    """True at the end of an epoch's last batch, before Composer counts the epoch."""
    length = state.dataloader_len
    return length is not None and state.timestamp.batch_in_epoch.value == length.value


def is_last_batch(state: State) -> bool:
    """True at the end of the run's last batch."""
    duration = state.max_duration
    assert duration is not None
    if duration.unit == TimeUnit.EPOCH:
        return is_last_batch_of_epoch(state) and state.timestamp.epoch.value + 1 >= duration.value
    return state.timestamp.get(duration.unit) >= duration


class Every:
    """True at the end of each n-th batch ("500ba") or epoch ("1ep"), and always at the end of the run; never before the
    first batch."""

    def __init__(self, interval: str):
        self.interval = Time.from_timestring(interval)

    def is_due(self, state: State) -> bool:
        if is_last_batch(state):
            return True
        if self.interval.unit == TimeUnit.EPOCH:
            return is_last_batch_of_epoch(state) and (state.timestamp.epoch.value + 1) % self.interval.value == 0
        batch = state.timestamp.batch.value
        return batch > 0 and batch % self.interval.value == 0

    def is_logged(self, state: State) -> bool:
        """Whether a log line is due: as for `is_due`, and after the first batch."""
        return self.is_due(state) or state.timestamp.batch.value == 1

    def __call__(self, state: State, event: Event) -> bool:
        """The form that Composer's `eval_interval` takes. Composer itself does not ask at the event FIT_START; see
        `UGTTrainer`."""
        return event == Event.FIT_START or (event == Event.BATCH_END and self.is_due(state))
