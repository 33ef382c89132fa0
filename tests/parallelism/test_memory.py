"""The memory that a dry run announces against what the ranks hold."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shop import ROOT, stage_arguments
from ugt_composer.parallelism.memory import FLOAT, HALF, Held, memory_per_rank

STRATEGIES = {
    "ddp": ["parallelism.strategy=ddp"],
    "fsdp": ["parallelism.strategy=fsdp"],
    **{
        f"zero-{stage}": ["parallelism.strategy=deepspeed", f"parallelism.deepspeed.zero_stage={stage}"]
        for stage in range(4)
    },
}
# Wide enough that weights, gradients and moments outweigh all else.
SIZE = ["model.d_model=128", "model.d_ff=256", "model.n_encoder_layers=2", "model.n_decoder_layers=2"]
ONE_BATCH = ["global_train_batch_size=4", "device_train_microbatch_size=2", "max_duration=2ba", "eval_interval=9ep"]


@pytest.fixture(scope="module")
def held(shop, tmp_path_factory) -> dict[str, dict]:
    """{strategy: {"parameters", "trainable", "largest_layer", "small", "bytes"}} of rank 0 before its second step."""
    out = tmp_path_factory.mktemp("memory")
    jobs = []
    for name, overrides in STRATEGIES.items():
        yaml, *rest = stage_arguments(shop, out / name, 1)
        jobs.append({"name": name, "yaml": yaml, "overrides": [*rest, *SIZE, *ONE_BATCH, *overrides]})
    (out / "jobs.json").write_text(json.dumps(jobs))
    composer = Path(sys.executable).parent / "composer"
    worker = Path(__file__).parent / "memory_worker.py"
    command = [str(word) for word in (composer, "-n", 2, worker, out / "jobs.json", out / "held.json")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((out / "held.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_estimate_is_what_is_held(held, name):
    found = held[name]
    kind, stage = ("deepspeed", int(name[-1])) if name.startswith("zero") else (name, 0)
    sizes = (found["parameters"], found["trainable"], found["largest_layer"], found["small"])
    estimate = memory_per_rank(kind, stage, 2, FLOAT, *sizes)
    # What DDP keeps for communication belongs to no Python tensor; what is gathered is freed before the step.
    counted = [
        h
        for h in estimate
        if h.name not in ("gathered", "reduced at once") and not (name == "ddp" and h.name == "buckets")
    ]
    # At stage 2 the bucket is there during the backward pass only.
    counted = [h for h in counted if not (name == "zero-2" and h.name == "buckets")]
    assert found["bytes"] == pytest.approx(sum(h.bytes for h in counted), rel=0.15)


def test_closed_forms():
    # Psi parameters in half precision, Rajbhandari et al. (2020): (2 + 2 + 12 / N) Psi at stage 1 and so on, with two
    # bytes more a gradient, which is accumulated in float32.
    ranks, psi = 64, 10**9

    def total(stage):
        names = ("weights", "gradients", "master weights", "optimizer")
        return sum(h.bytes for h in memory_per_rank("deepspeed", stage, ranks, HALF, psi, psi, 1) if h.name in names)

    assert total(1) == (2 + 4) * psi + 12 * psi // ranks
    assert total(2) == 2 * psi + (4 + 12) * psi // ranks
    assert total(3) == (2 + 4 + 12) * psi // ranks


def test_offloaded_parts_are_the_hosts():
    held = memory_per_rank("deepspeed", 3, 2, HALF, 100, 100, 10, offload_optimizer=True, offload_param=True)
    assert {h.name for h in held if h.where == "host"} == {"weights", "master weights", "optimizer"}
    assert Held("optimizer", 400, "host") in held


def test_gradients_that_fsdp_accumulates_are_whole_and_on_the_device():
    once, every = (
        memory_per_rank("fsdp", 0, 64, HALF, 1000, 640, 100, 0, True, True, accumulates=a) for a in (True, False)
    )
    assert set(once) - set(every) == {Held("whole gradients", 4 * 640)}
    assert {h.name for h in once if h.where == "host"} == {"weights", "gradients", "optimizer"}
