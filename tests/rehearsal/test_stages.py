"""Stages under every strategy and precision, variants of them, and commands, on a fake GPU that computes nothing."""

import pytest

from tests.rehearsal.host_waits import AFTER_EVALUATION, BEFORE_EVALUATION, EVALUATION, SAVE, STEP
from tests.rehearsal.jobs import COMMANDS, FAST, SLOW, name_of
from tests.rehearsal.stages import EVALUATE_EVERY, LOG_EVERY, SAVE_EVERY, STOP

pytestmark = pytest.mark.timeout(3600)  # the first test waits for all runs


@pytest.mark.parametrize("name", FAST)
def test_a_stage_trains_evaluates_saves_and_resumes(rehearsed, name):
    line = rehearsed[name]
    assert line["error"] is None, line["error"]
    assert line["launches"] > 10_000  # 8 batches


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_other_stage_trains_evaluates_saves_and_resumes(all_rehearsed, name):
    line = all_rehearsed[name]
    assert line["error"] is None, line["error"]
    assert line["launches"] > 5_000


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_well(rehearsed, name):
    line = rehearsed[name]
    assert line["error"] is None, line["error"]
    assert (line["launches"] > 100) == (name not in ("inspect", "export"))  # these two need no GPU


# Host waits, counted in the same runs. The first batches, and those that log, evaluate or save, may read values.

QUIET = [batch for batch in range(3, STOP) if batch % LOG_EVERY]  # the first two are the engine's warm-up
MICROBATCHES = 2  # of a batch
# DeepSpeed reads the norm and whether there was an overflow in each step.
OF_THE_ENGINE = {"zero-0": 2, "zero-1": 8, "zero-2": 8, "zero-3": 6}


def waits(line: dict, phase: str, batches: range | list[int]) -> dict[str, int]:
    return {
        f"{phase} {batch}: {place}": n
        for found, batch, place, n in line["waits"]
        if found == phase and batch in batches
    }


@pytest.mark.parametrize(
    "name",
    [
        name_of("amp_bf16", "ddp", 3),
        name_of("amp_bf16", "fsdp", 3),
        name_of("amp_fp16", "ddp", 3),  # the fused optimizer checks itself whether gradients overflowed
    ],
)
def test_a_step_that_logs_nothing_never_waits_for_the_device(rehearsed, name):
    line = rehearsed[name]
    assert waits(line, STEP, QUIET) == {}
    assert waits(line, STEP, [LOG_EVERY])  # they are counted


def test_determinism_costs_a_wait_in_the_backward_pass_of_each_microbatch(rehearsed):
    found = waits(rehearsed["deterministic-ddp"], STEP, QUIET)
    assert sum(found.values()) <= MICROBATCHES * len(QUIET), found
    assert all("torch/autograd/graph.py" in place for place in found), found


@pytest.mark.parametrize("strategy", OF_THE_ENGINE)
def test_the_engine_synchronises_only_where_it_must(rehearsed, strategy):
    found = waits(rehearsed[name_of("amp_bf16", strategy, 3)], STEP, QUIET)
    assert sum(found.values()) <= OF_THE_ENGINE[strategy] * len(QUIET), found
    assert all(" from ugt_composer/parallelism/deepspeed.py" in place for place in found), found


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_save_syncs_a_few_times_for_any_number_of_tensors(rehearsed, strategy):
    found = waits(rehearsed[name_of("amp_bf16", strategy, 3)], SAVE, [SAVE_EVERY])
    assert 0 < sum(found.values()) <= 12, found


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_an_evaluation_never_waits_within_a_batch_and_reads_all_metrics_together(rehearsed, strategy):
    line = rehearsed[name_of("amp_bf16", strategy, 3)]
    counts = {
        phase: sum(waits(line, phase, [EVALUATE_EVERY]).values())
        for phase in (BEFORE_EVALUATION, EVALUATION, AFTER_EVALUATION)
    }
    assert counts[BEFORE_EVALUATION] <= 5  # one object, which NCCL passes through the device
    assert counts[EVALUATION] == 0
    assert 0 < counts[AFTER_EVALUATION] <= 2
