"""Timeouts that end a rank whose main thread is blocked for ever; clock, NCCL and process groups are faked."""

from datetime import timedelta
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import ErrorType
from torch.distributed import distributed_c10d

from ugt_composer.job import group_timeouts
from ugt_composer.job import watchdog as module
from ugt_composer.job.group_timeouts import NCCL_MARGIN, limit_groups, nccl_error, report_nccl_errors
from ugt_composer.job.watchdog import BEHIND, Watchdog
from ugt_composer.training.callbacks.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now.seconds)
    monkeypatch.setattr(module, "nccl_error", lambda: None)
    return now


@pytest.fixture
def limits(monkeypatch):
    set_to = []
    monkeypatch.setattr(module, "limit_groups", set_to.append)
    return set_to


def test_the_start_timeout_applies_until_the_first_batch_is_trained(clock, limits):
    watchdog = Watchdog(start_timeout=3600, timeout=600)
    watchdog.watch()
    progress = Progress(watchdog)
    for event in (progress.before_dataloader, progress.batch_start, progress.before_forward):
        clock.seconds += 1300
        event(None, None)
    assert "dist_start_timeout (3600 s)" in watchdog.reason()
    Progress(watchdog).batch_end(None, None)
    assert limits == [600]
    clock.seconds += 600 + BEHIND
    assert watchdog.reason() is None
    clock.seconds += 1
    assert "no progress within dist_timeout (600 s); the main thread is at" in watchdog.reason()
    Progress(watchdog).batch_end(None, None)
    assert limits == [600]


@pytest.mark.parametrize(
    "event", ["before_dataloader", "batch_start", "before_forward", "batch_end", "eval_batch_start", "eval_batch_end"]
)
def test_each_training_event_is_progress(clock, limits, event):
    watchdog = Watchdog(start_timeout=3600, timeout=600)
    watchdog.watch()
    Progress(watchdog).batch_end(None, None)
    for _ in range(3):
        clock.seconds += 600
        getattr(Progress(watchdog), event)(None, None)
    assert watchdog.reason() is None


def test_nothing_is_watched_between_calls_of_the_trainer(clock, limits):
    watchdog = Watchdog(start_timeout=3600, timeout=600)
    watchdog.watch()
    watchdog.rest()
    clock.seconds += 1e6
    Progress(watchdog).eval_batch_end(None, None)
    assert watchdog.reason() is None
    Progress(watchdog).eval_standalone_start(None, None)
    clock.seconds += 1e6
    assert watchdog.reason() is not None
    Progress(watchdog).eval_standalone_end(None, None)
    assert watchdog.reason() is None


def test_an_nccl_error_ends_the_rank_before_the_timeout(clock, limits, monkeypatch):
    watchdog = Watchdog(start_timeout=3600, timeout=600)
    watchdog.watch()
    monkeypatch.setattr(module, "nccl_error", lambda: "remote error")
    assert watchdog.reason().startswith("NCCL reports a remote error; the main thread is at ")


@pytest.fixture
def groups(monkeypatch):
    """Fakes two process groups of this rank in torch.distributed, and records the timeouts that are set."""
    backend = SimpleNamespace(get_error=lambda: ErrorType.SUCCESS)
    of_gpus, of_hosts = Mock(_get_backend=lambda device: backend), Mock()
    timeouts = {}
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed_c10d, "_rank_not_in_group", lambda group: False)
    pg_map = {of_gpus: ("nccl", None), of_hosts: ("gloo", None)}
    monkeypatch.setattr(distributed_c10d, "_world", SimpleNamespace(pg_map=pg_map))
    monkeypatch.setattr(
        distributed_c10d, "_set_pg_timeout", lambda limit, group: timeouts.__setitem__(pg_map[group][0], limit)
    )
    return SimpleNamespace(backend=backend, timeouts=timeouts)


def test_gloo_times_out_before_nccl(groups):
    limit_groups(600)
    assert groups.timeouts == {"gloo": timedelta(seconds=600), "nccl": timedelta(seconds=600 + NCCL_MARGIN)}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (ErrorType.SUCCESS, None),
        (ErrorType.TIMEOUT, "timeout"),
        (ErrorType.COMM_ERROR, "communication error"),
        (ErrorType.REMOTE_ERROR, "remote error"),
    ],
)
def test_nccl_errors_are_read(groups, found, said):
    groups.backend.get_error = lambda: found
    assert nccl_error() == said


def test_nccl_errors_are_left_to_python(monkeypatch):
    environment = {"TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "7"}  # the user's value is kept
    monkeypatch.setattr(group_timeouts.os, "environ", environment)
    report_nccl_errors(3600)
    assert environment == {"TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "7", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}


def test_the_start_timeout_is_at_least_the_other_timeout():
    assert Watchdog(start_timeout=60, timeout=600).timeout() == 600
