"""The memory estimate of a dry run compared with the bytes of the ranks' tensors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shop import ROOT, stage_arguments
from ugt_composer.config.load import load_config
from ugt_composer.parallelism.build import strategy_class
from ugt_composer.parallelism.memory import MemoryItem, ModelSizes

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


def estimated(sizes: ModelSizes, ranks: int, precision: str, *overrides: str) -> list[MemoryItem]:
    config = load_config(overrides=["global_train_batch_size=128", "device_train_microbatch_size=1", *overrides])
    return strategy_class(config).memory(config, sizes, ranks, precision)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_estimate_equals_the_allocated_bytes(held, name):
    found = held[name]
    sizes = ModelSizes(found["parameters"], found["trainable"], found["largest_layer"], found["small"])
    estimate = estimated(sizes, 2, "fp32", *ONE_BATCH, *STRATEGIES[name])
    # What DDP keeps for communication belongs to no Python tensor; what is gathered is freed before the step.
    counted = [
        h
        for h in estimate
        if h.name not in ("gathered", "reduced at once") and not (name == "ddp" and h.name == "buckets")
    ]
    # At stage 2 the bucket exists during the backward pass only.
    counted = [h for h in counted if not (name == "zero-2" and h.name == "buckets")]
    assert found["bytes"] == pytest.approx(sum(h.bytes for h in counted), rel=0.15)


def test_closed_forms():
    # Psi parameters in half precision, Rajbhandari et al. (2020): (2 + 2 + 12 / N) Psi at stage 1 and so on, with two
    # bytes more a gradient, which is accumulated in float32.
    ranks, psi = 64, 10**9

    def total(stage):
        names = ("weights", "gradients", "master weights", "optimizer")
        items = estimated(ModelSizes(psi, psi, 1), ranks, "amp_bf16", *STRATEGIES[f"zero-{stage}"])
        return sum(item.bytes for item in items if item.name in names)

    assert total(1) == (2 + 4) * psi + 12 * psi // ranks
    assert total(2) == 2 * psi + (4 + 12) * psi // ranks
    assert total(3) == (2 + 4 + 12) * psi // ranks


def test_offloaded_parts_are_the_hosts():
    offload = [f"parallelism.deepspeed.offload_{part}=cpu" for part in ("optimizer", "param")]
    items = estimated(ModelSizes(100, 100, 10), 2, "amp_bf16", *STRATEGIES["zero-3"], *offload)
    assert {item.name for item in items if item.where == "host"} == {"weights", "master weights", "optimizer"}
    assert MemoryItem("optimizer", 400, "host") in items


def test_gradients_that_fsdp_accumulates_are_unsharded_and_on_the_device():
    once, every = (
        estimated(
            ModelSizes(1000, 640, 100),
            64,
            "amp_bf16",
            *STRATEGIES["fsdp"],
            "parallelism.fsdp.cpu_offload=true",
            f"parallelism.fsdp.reduce_every_microbatch={every_microbatch}",
        )
        for every_microbatch in ("false", "true")
    )
    assert set(once) - set(every) == {MemoryItem("whole gradients", 4 * 640)}
    assert {item.name for item in once if item.where == "host"} == {"weights", "gradients", "optimizer"}
