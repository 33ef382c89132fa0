"""The length of a run in batches, computed from the data's row counts and the config before anything is built."""

import math
from dataclasses import dataclass

from ugt_composer.config.schema import Config


@dataclass(frozen=True)
class RunLength:
    """Lengths in batches."""

    batches_per_epoch: int
    total: int
    warmup: int


def batches(time: str, batches_per_epoch: int, total: int = 0) -> int:
    """Batches in "500ba", "2ep" or "5%" (of `total`, rounded up)."""
    if time.endswith("%"):
        return math.ceil(float(time[:-1]) / 100 * total)
    value = int(time[:-2])
    return value * batches_per_epoch if time.endswith("ep") else value


def run_length(config: Config, rows_per_epoch: int) -> RunLength:
    """Warm-up is `scheduler.t_warmup`, at most `scheduler.max_warmup_ratio` of the run (a % is not bounded)."""
    per_epoch = math.ceil(rows_per_epoch / config.global_train_batch_size)
    total = batches(config.max_duration, per_epoch)
    warmup = batches(config.scheduler.t_warmup, per_epoch, total)
    if not config.scheduler.t_warmup.endswith("%"):
        warmup = min(warmup, math.floor(config.scheduler.max_warmup_ratio * total))
    return RunLength(per_epoch, total, warmup)
