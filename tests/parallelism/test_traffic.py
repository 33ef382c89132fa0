"""How much of the model a microbatch casts to half precision, and how often gradients are reduced."""

from typing import Any

import pytest
import torch

from tests.parallelism.traffic_ranks import CASES, MICROBATCHES, RANKS, run_rank
from tests.rank_processes import DEADLINE, run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * DEADLINE)]
ALL, ONE_SHARD, LAYERS = 1.0, 1 / RANKS, 0.85  # of the large weights; LAYERS: those of encoder and decoder
# What each microbatch casts: FSDP a rank's shard in every gather, DeepSpeed from stage 1 on nothing, because its
# weights are in half precision.
CAST = {
    "ddp": [ALL] * MICROBATCHES,
    "ddp fp16": [ALL] * MICROBATCHES,
    "ddp recomputing": [ALL + LAYERS] * MICROBATCHES,
    "fsdp": [ONE_SHARD * (ALL + LAYERS)] * MICROBATCHES,
    "fsdp fp16": [ONE_SHARD * (ALL + LAYERS)] * MICROBATCHES,
    "fsdp recomputing": [ONE_SHARD * (ALL + LAYERS)] * MICROBATCHES,
    "fsdp every": [ONE_SHARD * (ALL + LAYERS)] * MICROBATCHES,
    "fsdp keeping": [ONE_SHARD, *[0.0] * (MICROBATCHES - 1)],
    "zero-0": [ALL] * MICROBATCHES,
    "zero-1": [0.0] * MICROBATCHES,
    "zero-2": [0.0] * MICROBATCHES,
    "zero-3": [0.0] * MICROBATCHES,
}
REDUCED_EVERY_MICROBATCH = ("fsdp every", "zero-2", "zero-3")  # so that no rank has the gradients of a whole model


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, dict[str, Any]]]:
    """The results of each rank, by case."""
    out = tmp_path_factory.mktemp("traffic")
    run_ranks(run_rank, (str(out),), RANKS)
    return [torch.load(out / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("case", CASES)
def test_a_microbatch_casts_no_more_weights_than_it_has_to(found, case):
    for results in found:
        # Besides, some gradients of float32 layers are cast.
        assert results[case]["cast"] == pytest.approx(CAST[case], abs=0.05)


@pytest.mark.parametrize("case", CASES)
def test_every_gradient_is_reduced_once_a_batch_or_once_a_microbatch(found, case):
    times = MICROBATCHES if case in REDUCED_EVERY_MICROBATCH else 1
    for results in found:
        # Norms are reduced, too.
        assert results[case]["reduced"] == pytest.approx(times, rel=1e-4)
