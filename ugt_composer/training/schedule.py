"""The learning-rate schedule of a run, and what happens to it if the run resumes with another length."""

import logging
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from composer.optim import ComposerScheduler
from composer.utils import dist
from omegaconf import OmegaConf

from ugt_composer.checkpoint.resumable import SCHEDULE_END
from ugt_composer.config.checks import is_within
from ugt_composer.config.schema import Config, SchedulerConfig
from ugt_composer.errors import UserError
from ugt_composer.training.optim import create_scheduler, lr_factor
from ugt_composer.training.run_length import RunLength, length_of

log = logging.getLogger(__name__)


def schedule_of(scheduler: SchedulerConfig, length: RunLength) -> ComposerScheduler:
    return create_scheduler(scheduler.name, f"{length.warmup}ba", f"{length.schedule}ba", scheduler.min_lr_ratio)


def is_schedule_changed(path: Path, content: Mapping[str, Any], config: Config, length: RunLength) -> bool:
    """Whether another end of the schedule changes the learning rate with which a run resumes.

    `scheduler.t_max` decides which curve the run follows. It is required only where the learning rate would jump, and
    makes the curve a function of the configuration alone, so that later resumes follow the same one.

    Args:
        path, content: of the checkpoint.
        length: of the run that resumes, in `config`.

    Raises:
        UserError: it changes, and neither `scheduler.t_max` nor `resume_despite` says that it may; with the learning
            rates of both curves and the values to choose from.
    """
    before = OmegaConf.create(content["config"])
    names = {field.name for field in fields(SchedulerConfig)}
    scheduler = SchedulerConfig(**{str(k): v for k, v in before.scheduler.items() if k in names})
    previous = length_of(before.max_duration, scheduler, length.batches_per_epoch)
    batch = content["state"]["timestamp"]["Timestamp"]["batch"]
    if previous.schedule == length.schedule or batch >= length.total:
        return False
    kept_scheduler = replace(config.scheduler, t_max=f"{previous.schedule}ba")
    kept_length = length_of(config.max_duration, kept_scheduler, length.batches_per_epoch)
    kept = config.optimizer.lr * lr_factor(schedule_of(kept_scheduler, kept_length), batch)
    new = config.optimizer.lr * lr_factor(schedule_of(config.scheduler, length), batch)
    if math.isclose(kept, new):
        return False
    stopped = before.optimizer.lr * lr_factor(schedule_of(scheduler, previous), batch)
    causes = " and ".join(
        f"{name} was {old or 'null'}, now it is {now or 'null'}"
        for name, old, now in (
            ("max_duration", before.max_duration, config.max_duration),
            (SCHEDULE_END, scheduler.t_max, config.scheduler.t_max),
        )
        if old != now
    )
    ends = f"{causes}: the {config.scheduler.name} schedule ended at batch {previous.schedule}, now it ends at batch "
    ends += str(length.schedule)
    if config.scheduler.t_max is not None or is_within(SCHEDULE_END, config.resume_despite):
        if dist.get_global_rank() == 0:
            log.warning("%s; at batch %d the learning rate changes from %.4g to %.4g", ends, batch, stopped, new)
        return True
    lowest = config.optimizer.lr * lr_factor(schedule_of(kept_scheduler, kept_length), previous.schedule)
    idle = ", with which nothing is trained" if lowest == 0 else ""
    raise UserError(
        f"{path}: {ends}, and at batch {batch} the learning rate would jump from {stopped:.4g} to {new:.4g}. Add "
        f"{SCHEDULE_END}={config.max_duration} to follow the new curve, which starts at {new:.4g} here; or "
        f"{SCHEDULE_END}={scheduler.t_max or before.max_duration} to keep the old one, whose learning rate is "
        f"{lowest:.4g} from batch {previous.schedule} on{idle}"
    )
