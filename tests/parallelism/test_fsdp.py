"""FSDP2 on gloo ranks compared with one process, and how it distributes parameters over many ranks."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.parallelism.fsdp_ranks import BATCHES, MICROBATCHES, UNITS, Toy, run_rank, train_alone
from tests.rank_processes import DEADLINE, run_ranks
from ugt_composer.config.load import load_config
from ugt_composer.config.schema import FsdpConfig, ModelConfig
from ugt_composer.errors import UserError
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.fsdp import FsdpStrategy, flatten_experts, shard
from ugt_composer.parallelism.memory import sizes_of

pytestmark = pytest.mark.timeout(2 * DEADLINE)
SOME = 20_000  # bytes of a batch's own tensors


def start(ranks: int, folder: Path) -> list[dict[str, Any]]:
    run_ranks(run_rank, (ranks, str(folder)), ranks)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, Any]]:
    return start(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory) -> list[dict[str, Any]]:
    """Results of two and of three ranks: 3 divides neither the 128 rows of the experts' weights nor 32 of others."""
    return request.getfixturevalue("two") if request.param == 2 else start(3, tmp_path_factory.mktemp("three"))


def assert_as_alone(found: dict[str, Any], alone: dict[str, Any]) -> None:
    torch.testing.assert_close(found["norms"], alone["norms"], rtol=1e-5, atol=0)
    gradients = {name: gradient.view_as(alone["weights"][name]) for name, gradient in found["gradients"].items()}
    torch.testing.assert_close(gradients, alone["gradients"], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found["weights"], alone["weights"], rtol=1e-4, atol=1e-7)
    assert found["moments"].keys() == alone["moments"].keys()
    for name, moments in found["moments"].items():
        torch.testing.assert_close(moments, dict(alone["moments"][name]), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("how", ["once", "every", "kept"])
def test_steps_of_several_microbatches_are_those_of_one_process(ranks, how):
    alone = train_alone(len(ranks))
    for results in ranks:
        assert_as_alone(results[how], alone)


def test_offloaded_steps_are_those_of_one_process(two):
    for results in two:
        assert_as_alone(results["offloaded"], train_alone(2))


def test_the_steps_clip_and_leave_some_parameters_without_a_gradient():
    alone = train_alone(2)
    assert all(norm > 1 for norm in alone["norms"])
    without = [name for name in alone["weights"] if name not in alone["gradients"]]
    assert without == ["model.item_proj.weight", "model.item_proj.bias"]
    # In the first microbatch only.
    assert alone["gradients"]["model.user_proj.weight"].norm() > 0


def test_gradients_are_reduced_once_a_batch_unless_asked_for(ranks):
    for results in ranks:
        assert results["once"]["reductions"] == BATCHES * UNITS
        assert results["every"]["reductions"] == BATCHES * UNITS * MICROBATCHES


def test_weights_are_gathered_twice_a_microbatch_or_once_a_batch(ranks):
    for results in ranks:
        # The root stays gathered from forward to backward pass.
        assert results["once"]["gathers"] == BATCHES * MICROBATCHES * (2 * UNITS - 1)
        assert results["kept"]["gathers"] == results["kept"]["reductions"] == BATCHES * UNITS


def test_gradients_of_microbatches_add_up_in_float32_and_take_what_the_dry_run_says(two):
    config = load_config(overrides=["parallelism.strategy=fsdp", "device_train_microbatch_size=1"])
    estimate = FsdpStrategy.memory(config, sizes_of(Toy(0), []), 2, "amp_bf16")
    [whole] = [item.bytes for item in estimate if item.name == "whole gradients"]
    assert all(results["accumulated"] == {torch.float32: whole} for results in two)


def test_half_precision_of_reductions_is_not_that_of_sums_over_microbatches():
    with pytest.raises(ValueError, match=r"reduce_dtype is bfloat16 with reduce_every_microbatch false.*expected"):
        FsdpConfig(reduce_dtype="bfloat16")
    assert FsdpConfig(reduce_dtype="bfloat16", reduce_every_microbatch=True).reduce_dtype == "bfloat16"


def test_a_loss_scaler_with_gradients_in_host_memory_is_refused():
    keys = ["parallelism.strategy=fsdp", "parallelism.fsdp.cpu_offload=true"]
    with pytest.raises(UserError, match=r"amp_fp16 with parallelism.fsdp.cpu_offload true.*expected amp_bf16"):
        load_config(overrides=[*keys, "precision=amp_fp16"])
    assert load_config(overrides=[*keys, "precision=amp_bf16"]).parallelism.fsdp.cpu_offload


def test_full_tensors_have_the_models_shapes_and_survive_loading(ranks):
    shapes = {name: parameter.shape for name, parameter in Toy(0).named_parameters()}
    for results in ranks:
        saved, copied = results["once"], results["copied"]
        assert {name: weight.shape for name, weight in saved["weights"].items()} == shapes
        for part in ("weights", "moments"):
            torch.testing.assert_close(copied["tensors"][part], saved[part], rtol=0, atol=0)
        torch.testing.assert_close(copied["next"][0], copied["next"][1], rtol=0, atol=0)


def test_a_sharded_checkpoint_survives_loading_and_saving(ranks):
    for results in ranks:
        saved, loaded = results["sharded"]["tensors"]
        trained = {name: moments for name, moments in saved["moments"].items() if moments}
        assert len(trained) == len(saved["weights"]) - 2  # item_proj is frozen
        torch.testing.assert_close(loaded["weights"], saved["weights"], rtol=0, atol=0)
        torch.testing.assert_close({name: loaded["moments"][name] for name in trained}, trained, rtol=0, atol=0)


def test_shards_of_whole_experts_are_refused_with_the_way_out(ranks):
    for results in ranks:
        error = results["sharded"]["error"]
        assert f"{results['sharded']['name']} was sharded as (4, 32, 48), this version shards it as (128, 48)" in error
        assert "init_from" in error


@pytest.mark.parametrize("averages", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_norm_is_right_whether_the_backend_averages_or_sums(two, averages, dtype):
    norm = train_alone(2)["norms"][0]
    for results in two:
        divisor, found = results["backends"][averages, dtype]
        # In float16 FSDP2 itself divides by the number of ranks.
        assert divisor == (1 if averages or dtype == torch.float16 else 2)
        torch.testing.assert_close(found, norm, rtol=1e-3, atol=0)


def test_inputs_are_not_rounded_and_gradients_are_float32(two):
    for results in two:
        assert results["half"]["input"] == torch.float32
        assert results["half"]["gradients"] == {torch.float32}


@pytest.mark.parametrize("place", ["placed", "sharded"])
def test_a_reference_in_half_precision_starts_as_the_policy(two, place):
    for results in two:
        assert results["half"]["policy"].abs().min() > 1
        assert torch.equal(results["half"][place], results["half"]["policy"])


@pytest.mark.parametrize("with_grad", [True, False])
def test_a_sharded_reference_is_never_gathered_in_full(two, with_grad):
    for results in two:
        held = results["reference"][with_grad]
        assert all(held["right"])
        assert held["shards"] < 0.51 * held["whole"]
        assert held["after"] <= held["shards"] + SOME
        assert held["during"] <= held["shards"] + held["root"] + held["layer"] + SOME < held["shards"] + held["whole"]
        assert held["order"] == 0  # no order of forward passes is kept for a backward pass that never comes


@pytest.mark.parametrize("ranks_in_all", [16, 24, 32, 64])
def test_many_ranks_hold_even_shards_of_the_shipped_model(ranks_in_all):
    found, total = {}, 0
    for rank in (0, ranks_in_all // 2, ranks_in_all - 1):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks_in_all)
        try:
            with torch.device("meta"):
                model = UGT(**asdict(ModelConfig()))
            total = sum(parameter.numel() for parameter in model.parameters())
            flatten_experts(model)
            mesh = init_device_mesh("cpu", (ranks_in_all,))
            shard(model, [*model.encoder.layers, *model.decoder.layers], True, mesh=mesh)
            own = [(p.to_local().numel(), p.numel()) for p in model.parameters() if isinstance(p, DTensor)]
        finally:
            dist.destroy_process_group()
        assert sum(size for _, size in own) == total
        found[rank] = sum(size for size, _ in own)
        # No rank's part of a large tensor is off by more than half a percent of the tensor.
        assert all(abs(size - whole / ranks_in_all) < 0.005 * whole for size, whole in own if whole > 2**20)
    assert found[0] == max(found.values()) < 1.01 * total / ranks_in_all
    assert min(found.values()) > 0.9 * total / ranks_in_all
