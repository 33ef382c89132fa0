"""The memory estimate of a dry run compared with the bytes of the ranks' tensors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.parallelism.fsdp_ranks import HALF, Toy, make_strategy, train_batch
from tests.shop import ROOT, stage_arguments
from ugt_composer.config.load import load_config
from ugt_composer.parallelism.build import strategy_class
from ugt_composer.parallelism.memory import MemoryItem, ModelSizes, ParameterSize, sizes_of
from ugt_composer.training.memory_estimate import estimate

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
    """{strategy: its job, with the "bytes" of rank 0 before its second step}"""
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
    found = json.loads((out / "held.json").read_text())
    return {job["name"]: {**job, "bytes": found[job["name"]]} for job in jobs}


def one_row_each(trained: int, frozen: int = 0) -> ModelSizes:
    """A vector of trained and one of frozen parameters, gathered together."""
    return ModelSizes(((ParameterSize(trained, 1, True), ParameterSize(frozen, 1, False)),))


def estimated(sizes: ModelSizes, ranks: int, precision: str, *overrides: str) -> list[MemoryItem]:
    config = load_config(overrides=["global_train_batch_size=128", "device_train_microbatch_size=1", *overrides])
    return strategy_class(config).memory(config, sizes, ranks, precision)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_estimate_equals_the_allocated_bytes(held, name):
    job = held[name]
    config = load_config(job["yaml"], overrides=[*job["overrides"], "precision=fp32"])
    # What DDP keeps for communication belongs to no Python tensor; what is gathered is freed before the step.
    counted = [
        h
        for h in estimate(config, 2, (8, 8, 0)).items
        if h.name not in ("gathered", "reduced at once") and not (name == "ddp" and h.name == "buckets")
    ]
    # At stage 2 the bucket exists during the backward pass only.
    counted = [h for h in counted if not (name == "zero-2" and h.name == "buckets")]
    assert job["bytes"] == pytest.approx(sum(h.bytes for h in counted), rel=0.15)


def test_closed_forms():
    # Psi parameters in half precision, Rajbhandari et al. (2020): (2 + 2 + 12 / N) Psi at stage 1 and so on, with two
    # bytes more a gradient, which is accumulated in float32.
    ranks, psi = 64, 10**9

    def total(stage):
        names = ("weights", "gradients", "master weights", "optimizer")
        items = estimated(one_row_each(psi), ranks, "amp_bf16", *STRATEGIES[f"zero-{stage}"])
        return sum(item.bytes for item in items if item.name in names)

    assert total(1) == (2 + 4) * psi + 12 * psi // ranks
    assert total(2) == 2 * psi + (4 + 12) * psi // ranks
    assert total(3) == (2 + 4 + 12) * psi // ranks


@pytest.mark.parametrize(
    ("stage", "precision", "items"),
    [
        (1, "amp_bf16", {"gradients": 4, "gradients of a microbatch": 2, "buckets": 4}),
        (1, "amp_fp16", {"gradients": 2, "buckets": 2}),
        (1, "fp32", {"gradients": 4, "buckets": 4}),
        (2, "amp_bf16", {"gradients": 4 / 64, "buckets": 2 * 2}),
        (2, "fp32", {"gradients": 4 / 64, "buckets": 2 * 4}),
    ],
)
def test_gradients_and_copies_of_deepspeed(stage, precision, items):
    # Bytes per parameter, counted with all tensors of a step at each stage and precision by benchmarks/many_ranks.py.
    found = {
        item.name: item.bytes for item in estimated(one_row_each(6400), 64, precision, *STRATEGIES[f"zero-{stage}"])
    }
    others = ("weights", "master weights", "optimizer")
    assert {name: size for name, size in found.items() if name not in others} == {
        name: 6400 * size for name, size in items.items()
    }


def test_what_fsdp_allocates_on_one_of_64_ranks_is_what_the_dry_run_says(monkeypatch):
    """The model is so small that many tensors have fewer rows than there are ranks."""
    sent: dict[str, list[int]] = {"all_gather_into_tensor": [], "reduce_scatter_tensor": []}

    def count(name: str, whole: str) -> None:
        collective = getattr(dist, name)

        def counted(**arguments):
            sent[name].append(arguments[whole].nbytes)
            return collective(**arguments)

        monkeypatch.setattr(dist, name, counted)

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=64)
    try:
        strategy = make_strategy(param_dtype=HALF, reduce_every_microbatch=True)
        count("all_gather_into_tensor", "output_tensor")
        count("reduce_scatter_tensor", "input")
        with torch.autocast("cpu", HALF):
            train_batch(strategy, 0)
        strategy.optimizer.step()
        weights = list(strategy.model.parameters())
        gradients = [weight.grad for weight in weights if weight.requires_grad]
        moments = [state[key] for state in strategy.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    finally:
        dist.destroy_process_group()
    toy = Toy(0)
    sizes = sizes_of(toy, [*toy.model.encoder.layers, *toy.model.decoder.layers])
    options = ["parallelism.fsdp.reduce_every_microbatch=true", *STRATEGIES["fsdp"]]
    assert {item.name: item.bytes for item in estimated(sizes, 64, "amp_bf16", *options)} == {
        "weights": allocated(weights),
        "gradients": allocated(gradients),
        "optimizer": allocated(moments),
        "gathered": 2 * max(sent["all_gather_into_tensor"]),
        # In float32, and autograd's gradients in bfloat16.
        "reduced at once": max(sent["reduce_scatter_tensor"]) * (4 + 2) // 4,
    }
    assert allocated(weights) > 1.5 * 4 * sizes.parameters / 64


def allocated(shards: list[Tensor]) -> int:
    """Bytes of the storages of this rank's parts."""
    storages = [shard.to_local().untyped_storage() for shard in shards if isinstance(shard, DTensor)]
    assert len(storages) == len(shards)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_offloaded_parts_are_the_hosts():
    offload = [f"parallelism.deepspeed.offload_{part}=cpu" for part in ("optimizer", "param")]
    items = estimated(one_row_each(100), 2, "amp_bf16", *STRATEGIES["zero-3"], *offload)
    assert {item.name for item in items if item.where == "host"} == {"weights", "master weights", "optimizer"}
    assert MemoryItem("optimizer", 400, "host") in items


def test_gradients_that_fsdp_accumulates_are_unsharded_and_on_the_device():
    once, every = (
        estimated(
            one_row_each(640, 360),
            64,
            "amp_bf16",
            *STRATEGIES["fsdp"],
            "parallelism.fsdp.cpu_offload=true",
            f"parallelism.fsdp.reduce_every_microbatch={every_microbatch}",
        )
        for every_microbatch in ("false", "true")
    )
    assert MemoryItem("whole gradients", 4 * 640) in once
    assert "whole gradients" not in {item.name for item in every}
    assert {item.name for item in once if item.where == "host"} == {"weights", "gradients", "optimizer"}
