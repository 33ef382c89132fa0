"""Microbatches in bf16 under DeepSpeed: gradients are accumulated in float32, and the state is saved and restored."""

import pytest
import torch

from tests.parallelism.accumulation_worker import CASES, RANKS, SCALES, run_rank
from tests.rank_processes import run_ranks

ALL = [(case, rank) for case in CASES for rank in range(RANKS)]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """The results of each rank, by case."""
    out = tmp_path_factory.mktemp("accumulation")
    run_ranks(run_rank, (str(out),), RANKS)
    return [torch.load(out / f"{rank}.pt") for rank in range(RANKS)]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize(("case", "rank"), ALL)
def test_small_gradients_are_not_lost_beside_large_ones(results, case, rank):
    # After one step a first moment is (1 - beta_1) times the gradient, which summed in bf16 would be 256.
    moment = results[rank][case]["once"]["outer.bias exp_avg"]
    torch.testing.assert_close(moment, torch.full((5,), 0.1 * sum(SCALES)))


@pytest.mark.parametrize(("case", "rank"), ALL)
def test_a_gathered_state_can_be_loaded_and_resumed_bit_for_bit(results, case, rank):
    found = results[rank][case]
    assert equal(found["written"], found["once"])
    assert equal(found["resumed"], found["twice"])
    assert not equal(found["twice"], found["once"])
    assert found["twice"]["inner.weight step"].item() == 2


@pytest.mark.parametrize(("case", "rank"), ALL)
def test_a_sharded_checkpoint_resumes_bit_for_bit(results, case, rank):
    assert equal(results[rank][case]["sharded"], results[rank][case]["twice"])


@pytest.mark.parametrize(("case", "rank"), ALL)
def test_the_norm_is_that_of_the_sum(results, case, rank):
    moments = [value.norm() for key, value in results[rank][case]["once"].items() if key.endswith(" exp_avg")]
    norm = torch.stack(moments).norm().item() / 0.1
    assert results[rank][case]["norm"] == pytest.approx(norm, rel=1e-5)
