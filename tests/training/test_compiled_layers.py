"""Compiled layers: where their graphs break, how often they are compiled, and what autograd keeps of them."""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from tests.conftest import TINY, make_batch
from tests.saved_memory import dropout_as_on_a_gpu  # noqa: F401 - a fixture
from ugt_composer.model.build import build_model
from ugt_composer.model.ugt import UGT
from ugt_composer.training.compiled_layers import compile_layers

MODELS: dict[str, dict[str, Any]] = {
    "capacity": {},
    "dropless": {"expert_capacity_factor": None},
    "attention dropout": {"attention_dropout": 0.1},
    "time bias": {"time_buckets": 8, "relative_time_bias": True},
}
# Functions at which a graph breaks on a CPU, each with the reason.
BREAKS = {"_dropless": "reads the number of tokens of each expert; on Hopper grouped products take its place"}
TRAINS, EVALUATES, SCORES = "trains", "evaluates", "scores as the reference"
FIRST = ((4, 9, 3), (5, 9, 3), (6, 12, 5))  # rows, history, target: others are variable afterwards


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


@pytest.fixture
def compiled() -> list[torch.fx.GraphModule]:
    """The graphs that `recording` has compiled."""
    return []


@pytest.fixture
def recording(compiled) -> Callable[..., Any]:
    """A backend that records its graphs and runs them as they are."""

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    return backend


def make(layers: int = 1, **changes: Any) -> UGT:
    sizes = {"n_encoder_layers": layers, "n_decoder_layers": layers, "dropout": 0.1, "expert_capacity_factor": 1.25}
    return build_model(replace(TINY, **{**sizes, **changes}), 0).train()


def set_checkpointing(model: UGT, enabled: bool) -> None:
    model.encoder.activation_checkpointing = model.decoder.activation_checkpointing = enabled


def broken_at() -> set[str]:
    """The functions of BREAKS at which graphs broke; other breaks by their message."""
    named = [[name for name in BREAKS if name in reason] or [reason] for reason in counters["graph_break"]]
    return set(itertools.chain(*named))


def loss(outputs: dict[str, Any]) -> Tensor:
    values = [value for value in outputs.values() if isinstance(value, Tensor) and value.requires_grad]
    return torch.stack([value.float().square().mean() for value in values]).sum()


def run(model: UGT, what: str, *sizes: int) -> None:
    """A step of training or evaluation of a batch of `sizes`: rows, history, target, rejected items."""
    batch = make_batch(*sizes)
    model.train(what == TRAINS)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(what == TRAINS):
        if what == SCORES:
            model.start(batch)
        else:
            outputs = model(batch)
    if what == TRAINS:
        loss(outputs).backward()


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [
        ("capacity", True),
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in MODELS),
        pytest.param("time bias", True, marks=pytest.mark.slow),
    ],
)
def test_graphs_break_only_where_counts_are_read(recording, name, checkpointing):
    model = make(**MODELS[name])
    set_checkpointing(model, checkpointing)
    compile_layers(model, recording)
    run(model, TRAINS, 4, 9, 3)
    assert broken_at() == ({"_dropless"} if name == "dropless" else set())


@pytest.mark.slow
@pytest.mark.parametrize(("what", "rejected"), [(TRAINS, 2), (EVALUATES, 0), (SCORES, 0)])
def test_graphs_break_where_no_token_or_no_first_token_may_be_dropped(recording, what, rejected):
    model = make()
    compile_layers(model, recording)
    run(model, what, 4, 9, 3, rejected)
    assert broken_at() == {"_dropless"}


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("capacity", TRAINS),
        pytest.param("dropless", TRAINS, marks=pytest.mark.slow),
        pytest.param("time bias", TRAINS, marks=pytest.mark.slow),
        pytest.param("capacity", EVALUATES, marks=pytest.mark.slow),
        pytest.param("capacity", SCORES, marks=pytest.mark.slow),
    ],
)
def test_other_numbers_of_rows_and_lengths_compile_nothing_again(compiled, recording, name, what):
    model = make(**MODELS[name])
    set_checkpointing(model, True)
    compile_layers(model, recording)
    for sizes in FIRST:
        run(model, what, *sizes)
    first = len(compiled)
    for sizes in ((3, 20, 7), (7, 7, 7), (8, 33, 4), (2, 2, 2), (16, 5, 16), (9, 64, 3)):
        run(model, what, *sizes)
    assert 0 < first == len(compiled)


@pytest.mark.slow  # compiles every variant
def test_no_layer_is_given_up_for_its_number_of_variants(recording):
    # Sizes of 1 are compiled by themselves. A layer that was given up would raise an error, see `fresh`.
    model, reference = make(), make(dropout=0.0).eval()
    set_checkpointing(model, True)
    for network in (model, reference):
        compile_layers(network, recording)
    for sizes in (*FIRST, (1, 4, 2), (3, 1, 2), (3, 4, 1), (1, 1, 1)):
        run(model, TRAINS, *sizes)
        run(model, TRAINS, *sizes, 2)
        run(model, EVALUATES, *sizes)
        run(reference, SCORES, *sizes)


def kept(model: UGT, *sizes: int) -> int:
    """Bytes that autograd keeps of a forward pass, without weights and the batch."""
    batch = make_batch(*sizes)
    tensors = (*model.parameters(), *model.buffers(), *(value for value in batch.values() if torch.is_tensor(value)))
    known = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    storages: dict[int, int] = {}
    alive = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        outputs = model(batch)
    loss(outputs).backward()
    return sum(size for address, size in storages.items() if address not in known)


@pytest.mark.usefixtures("dropout_as_on_a_gpu")
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("capacity", (4, 64, 3)),
        pytest.param("capacity", (16, 8, 24), marks=pytest.mark.slow),
        *(pytest.param(name, (8, 48, 12), marks=pytest.mark.slow) for name in MODELS),
    ],
)
def test_autograd_keeps_no_more_of_compiled_layers(name, sizes):
    # This backend divides forward and backward pass as Inductor does, but generates no code.
    eager, model = make(**MODELS[name]), make(**MODELS[name])
    compile_layers(model, "aot_eager_decomp_partition")
    found, wanted = kept(model, *sizes), kept(eager, *sizes)
    assert counters["stats"]["unique_graphs"] > 0
    assert found <= wanted


def test_layers_stay_whole_under_ddp(compiled, recording, monkeypatch):
    # PyTorch would cut these at its bucket of 1 MiB, and fail with the second batch.
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        model = make(d_model=256, d_ff=512)
        monkeypatch.setenv("LOCAL_RANK", "0")
        compile_layers(model, recording)
        ranks = DistributedDataParallel(model)
        loss(ranks(make_batch(4, 9, 3))).backward()
        assert len(compiled) == 2
        loss(ranks(make_batch(5, 12, 4))).backward()
