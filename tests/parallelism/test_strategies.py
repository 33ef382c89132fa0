"""Every strategy compared with one process: the same losses, norms, evaluations and checkpoints."""

import math

import pytest
import torch
from safetensors.torch import load_file

from tests.parallelism.conftest import (
    AVERAGED,
    ITSELF,
    OF_CATALOGUE,
    PAIRS,
    SHARDED,
    SLOW_ITSELF,
    SLOW_SHARDED,
    SLOW_STAGES,
    SLOW_THIN,
    SLOW_VARIANTS,
    STAGES,
    STEPS,
    THIN,
    VARIANT_STEPS,
    VARIANTS,
)
from tests.parity import (
    BASE,
    BOUND,
    OTHERS,
    STRATEGIES,
    difference,
    largest_difference,
    metrics_of,
    middle_checkpoint,
    resume_difference,
    training_of,
)
from tests.shop import comparable
from ugt_composer.checkpoint.run_checkpoints import read_checkpoint
from ugt_composer.checkpoint.save_folder import list_checkpoints

pytestmark = pytest.mark.timeout(1800)  # the first test waits for all runs


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", OTHERS)
def test_a_strategy_gives_the_numbers_of_one_process(runs, stage, name):
    assert difference(runs, stage, name) <= BOUND


@pytest.mark.slow
@pytest.mark.parametrize("stage", SLOW_STAGES)
@pytest.mark.parametrize("name", OTHERS)
def test_a_strategy_gives_the_numbers_of_one_process_in_another_stage(slow_runs, stage, name):
    assert difference(slow_runs, stage, name) <= BOUND


def test_the_compared_steps_have_all_losses_and_clip(runs):
    lines = metrics_of(runs / "stage3" / BASE)
    assert [line["batch"] for line in lines] == list(range(1, STEPS + 1))
    for part in ("ntp", "contrastive", "dpo", "moe_balance"):
        assert all(line[f"loss/train/{part}_loss"] > 0 for line in lines)
    assert lines[0]["loss/train/anchor_loss"] == 0  # the policy equals its reference
    assert lines[-1]["loss/train/anchor_loss"] > 0
    assert sum(line["metrics/train/grad_norm"] > 0.5 for line in lines) > STEPS // 2
    assert "metrics/eval/recall@10" in lines[-1]


@pytest.mark.parametrize(("saved", "name"), PAIRS)
def test_a_checkpoint_resumes_under_another_strategy_and_number_of_ranks(runs, saved, name):
    assert resume_difference(runs, STEPS, saved, name) <= BOUND


@pytest.mark.parametrize("name", ITSELF)
def test_a_checkpoint_resumes_under_the_same_strategy_bit_for_bit(runs, name):
    assert_goes_on_bit_for_bit(runs, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_ITSELF)
def test_a_checkpoint_of_another_strategy_resumes_bit_for_bit(slow_runs, name):
    assert_goes_on_bit_for_bit(slow_runs, name)


def assert_goes_on_bit_for_bit(runs, name: str) -> None:
    whole, resumed = comparable(runs / "stage3" / name), comparable(runs / "stage3/resumed" / name / name)
    last = {key: value for key, value in whole[-1].items() if not key.startswith("metrics/eval/")}
    assert resumed == [*whole[STEPS // 2 : -1], last]


@pytest.mark.parametrize("name", VARIANTS)
def test_an_option_does_not_change_the_numbers(runs, name):
    lines = metrics_of(runs / "stage3/variant" / name)
    assert largest_difference(training_of(runs / "stage3" / BASE)[:VARIANT_STEPS], lines) <= BOUND


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_VARIANTS)
def test_another_option_does_not_change_the_numbers(slow_runs, name):
    lines = metrics_of(slow_runs / "stage3/variant" / name)
    assert largest_difference(training_of(slow_runs / "stage3" / BASE)[:VARIANT_STEPS], lines) <= BOUND


def test_evaluation_counts_each_row_once_on_two_ranks(runs):
    assert_evaluated_as_alone(runs, 2)


@pytest.mark.slow
def test_evaluation_counts_each_row_once_on_three_ranks(slow_runs):
    assert_evaluated_as_alone(slow_runs, 3)


def assert_evaluated_as_alone(runs, ranks: int) -> None:
    alone, together = (metrics_of(runs / "stage2/evaluated" / str(n)) for n in (1, ranks))
    assert "metrics/eval/ndcg@10" in alone[0]
    assert "metrics/eval/preference_accuracy" in alone[0]
    assert largest_difference(alone, together) <= BOUND


@pytest.mark.parametrize("name", OF_CATALOGUE)
def test_all_items_as_negatives_give_the_numbers_of_one_process(runs, name):
    alone, together = (metrics_of(runs / "stage2/catalogue" / n) for n in (BASE, name))
    assert alone[-1]["metrics/eval/contrastive_loss"] > 0
    assert alone[-1]["metrics/eval/distillation_loss"] > 0
    assert alone[-1]["metrics/eval/ndcg@10"] > 0
    assert largest_difference(alone, together) <= BOUND


@pytest.mark.parametrize("name", OF_CATALOGUE)
def test_a_group_is_drawn_and_judged_as_by_one_process(runs, name):
    alone, together = (metrics_of(runs / "stage3/group" / n) for n in (BASE, name))
    assert alone[-1]["metrics/train/group_kl"] > 0
    assert alone[-1]["metrics/eval/group_kl"] > 0
    assert largest_difference(alone, together) <= BOUND


@pytest.mark.parametrize("name", AVERAGED)
def test_the_average_of_the_weights_is_that_of_one_process(runs, name):
    alone, together = (metrics_of(runs / "stage2/average" / n) for n in (BASE, name))
    assert largest_difference(alone, together) <= BOUND
    assert largest_difference(alone, metrics_of(runs / "stage2" / BASE)[: len(alone)]) > BOUND
    ours, theirs = (read_checkpoint(list_checkpoints(runs / "stage2/average" / n)[0]) for n in (BASE, name))
    assert ours["average"].keys() == theirs["average"].keys()
    weights = load_file(runs / "stage2/average" / name / "latest/model.safetensors")
    for key, tensor in ours["average"].items():
        torch.testing.assert_close(theirs["average"][key], tensor, rtol=1e-3, atol=1e-4)
        assert torch.equal(weights[key.removeprefix("model.")], theirs["average"][key])


@pytest.mark.parametrize("name", SHARDED)
def test_a_sharded_checkpoint_resumes_under_the_same_strategy(runs, name):
    assert_shards_go_on(runs, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_SHARDED)
def test_a_sharded_checkpoint_of_another_strategy_resumes(slow_runs, name):
    assert_shards_go_on(slow_runs, name)


def assert_shards_go_on(runs, name: str) -> None:
    folder = runs / "stage3/sharded" / name
    assert largest_difference(training_of(runs / "stage3" / BASE)[:VARIANT_STEPS], metrics_of(folder)) <= BOUND
    assert all(path.is_dir() for path in list_checkpoints(folder))


@pytest.mark.parametrize("name", STRATEGIES)
def test_clipping_bounds_the_gradient_of_all_ranks_together(runs, name):
    # After AdamW's first step a first moment is (1 - beta_1) times the gradient that the step was given.
    folder = runs / "stage2/clip" / name
    [newest] = list_checkpoints(folder)
    moments = read_checkpoint(newest)["optimizer"]["moments"].values()
    norm = torch.stack([moment["exp_avg"].norm() for moment in moments]).norm() / (1 - 0.9)
    [line] = metrics_of(folder)
    assert line["metrics/train/grad_norm"] > 0.1
    assert norm.item() == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_has_the_same_full_tensors_under_every_strategy(runs, name):
    ours, theirs = (read_checkpoint(middle_checkpoint(runs, n, STEPS)) for n in (BASE, name))
    assert ours["model"].keys() == theirs["model"].keys()
    assert ours["optimizer"]["moments"].keys() == theirs["optimizer"]["moments"].keys()
    for key, tensor in ours["model"].items():
        assert theirs["model"][key].dtype == tensor.dtype
        torch.testing.assert_close(theirs["model"][key], tensor, rtol=1e-3, atol=1e-4)
    for key, moment in ours["optimizer"]["moments"].items():
        other = theirs["optimizer"]["moments"][key]
        assert moment.keys() == other.keys()
        assert moment["step"].item() == other["step"].item() == STEPS // 2
        torch.testing.assert_close(other["exp_avg"], moment["exp_avg"], rtol=1e-3, atol=1e-6)
    assert not any("reference" in key for key in ours["model"])


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_portable_model_is_the_trained_one(runs, name):
    folder = runs / "stage3" / name
    weights = load_file(folder / "latest/model.safetensors")
    trained = read_checkpoint(list_checkpoints(folder)[0])["model"]
    assert {f"model.{key}" for key in weights} == {key for key in trained if key.startswith("model.")}
    assert all(torch.equal(value, trained[f"model.{key}"]) for key, value in weights.items())


@pytest.mark.parametrize("name", OTHERS)
def test_thin_batches_neither_hang_nor_differ(runs, name):
    """Ranks with no preference row, with one, or with only ignored labels."""
    assert_thin_as_alone(runs, name, THIN)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_a_smaller_last_batch_neither_hangs_nor_differs(slow_runs, name):
    assert_thin_as_alone(slow_runs, name, SLOW_THIN)


def assert_thin_as_alone(runs, name: str, rows: int) -> None:
    lines = metrics_of(runs / "thin" / str(rows) / name)
    assert len(lines) == math.ceil(24 / rows)  # 23 rows, and one again, so that four ranks could share them
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert largest_difference(metrics_of(runs / "thin" / str(rows) / BASE), lines) <= BOUND


def test_the_data_is_as_thin_as_the_test_means(runs):
    weights = load_file(runs / "thin" / "2" / BASE / "latest/model.safetensors")
    assert all(weights[f"{name}_embedding.weight"].any() for name in ("action", "since", "gap", "elapsed"))
    assert weights["encoder.layers.0.attention.time_bias"].any()
    lines = metrics_of(runs / "thin" / "2" / BASE)
    assert any(line["loss/train/dpo_loss"] == 0 for line in lines)
    assert any(line["loss/train/ntp_loss"] == 0 for line in lines)
    assert any(line["loss/train/dpo_loss"] > 0 for line in lines)


def test_the_reference_is_never_trained(runs):
    # Every run of stage 3 read this model after others had trained from it.
    before = load_file(runs / "stage2" / BASE / "best/model.safetensors")
    after = load_file(runs / "stage3" / BASE / "latest/model.safetensors")
    assert any(not torch.equal(before[key], after[key]) for key in before)
    first = metrics_of(runs / "stage3/variant/fsdp-offload-checkpointing-sharded-reference")[0]
    assert first["loss/train/dpo_loss"] == pytest.approx(0.693147, abs=1e-5)  # policy and reference are still the same


def test_no_extension_is_compiled(runs):
    # PyTorch compiles one under a lock without an owner: a run killed meanwhile would block all later runs.
    assert not (runs / "extensions").exists()
