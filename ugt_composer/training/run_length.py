"""The length of a run in batches, computed from the data's row counts and the config before anything is built."""

import math
from dataclasses import dataclass

from ugt_composer.config.schema import Config, SchedulerConfig


@dataclass(frozen=True)
class RunLength:
    """Lengths in batches.

    Attributes:
        schedule: the batch at which the learning rate reaches its lowest value, and from which on it stays there.
    """

    batches_per_epoch: int
    total: int
    warmup: int
    schedule: int


def batches(time: str, batches_per_epoch: int, total: int = 0) -> int:
    """Batches in "500ba", "2ep" or "5%" (of `total`, rounded up)."""
    if time.endswith("%"):
        return math.ceil(float(time[:-1]) / 100 * total)
    value = int(time[:-2])
    return value * batches_per_epoch if time.endswith("ep") else value


def run_length(config: Config, rows_per_epoch: int) -> RunLength:
    per_epoch = math.ceil(rows_per_epoch / config.global_train_batch_size)
    return length_of(config.max_duration, config.scheduler, per_epoch)


def length_of(max_duration: str, scheduler: SchedulerConfig, batches_per_epoch: int) -> RunLength:
    """The schedule ends at `t_max`, by default the run's end. Warm-up is `t_warmup`, at most `max_warmup_ratio` of the
    schedule (a % is not bounded)."""
    total = batches(max_duration, batches_per_epoch)
    schedule = batches(scheduler.t_max or max_duration, batches_per_epoch)
    warmup = batches(scheduler.t_warmup, batches_per_epoch, schedule)
    if not scheduler.t_warmup.endswith("%"):
        warmup = min(warmup, math.floor(scheduler.max_warmup_ratio * schedule))
    return RunLength(batches_per_epoch, total, warmup, schedule)
