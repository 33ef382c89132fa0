"""Layers of the encoder that are computed by the kernels, under Triton's interpreter in float16."""

import pytest
import torch

from tests.kernels.interpreted import interpreted
from tests.saved_memory import dropout_as_on_a_gpu, saved_bytes  # noqa: F401 - a fixture
from ugt_composer import kernels
from ugt_composer.config.schema import ModelConfig
from ugt_composer.model.attention import PointwiseAttention
from ugt_composer.model.encoder import EncoderLayer
from ugt_composer.model.history_tokens import HistoryTokens
from ugt_composer.parallelism.activations import AUTOCAST, Shape, encoder_layer

pytestmark = interpreted
ROWS, LENGTH, D, HEADS, F = 3, 40, 32, 2, 80


@pytest.fixture
def switch(monkeypatch):
    """switch(on): whether layers use the kernels."""
    return lambda on: monkeypatch.setattr(kernels, "are_usable", lambda x: on and x.dtype in kernels.DTYPES)


def make(dropout=0.0, attention_dropout=0.0, activation="silu"):
    torch.manual_seed(0)
    layer = EncoderLayer(D, HEADS, F, 4, dropout, attention_dropout, activation)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(ROWS, LENGTH, D, requires_grad=True)
    types = torch.randint(4, (ROWS, LENGTH))
    mask = torch.arange(LENGTH) < torch.tensor([LENGTH, 1, 25])[:, None]
    return layer, x, types, HistoryTokens(mask)


def results(layer, x, types, tokens, half=True):
    """Outputs of the valid tokens, and the gradients."""
    with torch.autocast("cpu", torch.float16, enabled=half):
        out = layer(x, types, tokens)
    mask = tokens.mask
    gradients = torch.autograd.grad((out * mask[..., None]).square().mean(), [x, *layer.parameters()])
    return [out[mask].detach(), *gradients]


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_a_layer_with_kernels_is_the_layer_without(switch, activation):
    layer, *inputs = make(activation=activation)
    switch(True)
    fused = results(layer, *inputs)
    switch(False)
    plain, exact = results(layer, *inputs), results(layer, *inputs, half=False)
    for ours, half, single in zip(fused, plain, exact, strict=True):
        assert ours.dtype == half.dtype
        error, usual = (float((one - single).norm() / single.norm()) for one in (ours, half))
        assert error < 1.5 * usual + 1e-4


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_packed_tokens_give_the_numbers_of_padded_ones(switch, activation):
    switch(True)
    layer, x, types, padded = make(activation=activation)
    mask = padded.mask
    tokens = HistoryTokens.of({"encoder_mask": mask, "encoder_tokens": mask.flatten().nonzero().squeeze(1)})  # type: ignore[typeddict-item]
    found = {}
    for name, given in (("padded", padded), ("packed", tokens)):
        with torch.autocast("cpu", torch.float16):
            out = layer(given.select(x), given.select(types), given)
        valid = out[mask] if name == "padded" else out
        gradients = torch.autograd.grad(valid.float().square().mean(), [x, *layer.parameters()])
        found[name] = [valid.detach(), *gradients]
    for ours, wanted in zip(found["packed"], found["padded"], strict=True):
        assert (ours - wanted).norm() <= 1e-3 * wanted.norm()  # sums over tokens are rounded in another order


def test_in_float32_only_the_norms_are_kernels(switch):
    layer, *inputs = make()
    switch(False)
    plain = results(layer, *inputs, half=False)
    switch(True)
    torch.testing.assert_close(results(layer, *inputs, half=False), plain, rtol=1e-4, atol=1e-6)


def test_a_layer_that_is_too_wide_for_the_kernels_does_without(switch):
    switch(True)
    width = kernels.MAX_WIDTH + 128
    layer = PointwiseAttention(width, width // 128, 0.0).half()
    assert layer(torch.zeros(1, 1, width).half(), HistoryTokens(torch.ones(1, 1, dtype=torch.bool))).shape == (
        1,
        1,
        width,
    )


def test_a_compiled_layer_keeps_the_kernels_as_they_are(switch):
    switch(True)
    layer, *inputs = make()
    eager = results(layer, *inputs)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.float16):
        graph = torch._dynamo.explain(layer)(*inputs)
    assert graph.graph_break_count == 0
    for ours, wanted in zip(results(compiled, *inputs), eager, strict=True):
        assert (ours - wanted).norm() < 1e-3 * wanted.norm()  # float16 is rounded in other places


@pytest.mark.usefixtures("dropout_as_on_a_gpu")
@pytest.mark.parametrize(("dropout", "attention_dropout"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.1)])
def test_a_layer_keeps_the_memory_that_the_dry_run_counts(switch, dropout, attention_dropout):
    switch(True)
    layer, *inputs = make(dropout, attention_dropout)
    with torch.autocast("cpu", torch.float16):
        found = saved_bytes(layer, *inputs)
    casts = 2 * sum(parameter.numel() for name, parameter in layer.named_parameters() if "norm" not in name)
    model = ModelConfig(d_model=D, n_heads=HEADS, d_ff=F, dropout=dropout, attention_dropout=attention_dropout)
    assert encoder_layer(model, AUTOCAST, Shape(ROWS, LENGTH, 1, 0)).kept == pytest.approx(found - casts, rel=0.03)
