"""The formulas for activation memory compared with what autograd saves, on a CPU in float32."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.saved_memory import dropout_as_on_a_gpu, saved_bytes  # noqa: F401 - a fixture
from ugt_composer import kernels
from ugt_composer.config.schema import LossConfig, ModelConfig
from ugt_composer.losses.anchor import AnchorLoss
from ugt_composer.losses.ntp import NextTokenPredictionLoss
from ugt_composer.model.build import build_model
from ugt_composer.model.decoder import DecoderLayer
from ugt_composer.model.encoder import EncoderLayer
from ugt_composer.model.history_tokens import EncodedHistory, HistoryTokens
from ugt_composer.parallelism.activations import AUTOCAST, FLOAT32, Activations, Shape, decoder_layer, encoder_layer

MODEL = ModelConfig(d_model=64, n_heads=4, d_ff=160, num_experts=4, top_k_experts=2, dropout=0.0)
pytestmark = pytest.mark.usefixtures("dropout_as_on_a_gpu")
SHAPE = Shape(rows=8, history=48, target=32, rejected=0)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


@pytest.mark.parametrize(("p", "attention_p"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.1)])
@pytest.mark.parametrize("d_ff", [64, 320])
def test_an_encoder_layer_keeps_what_the_form_says(p, attention_p, d_ff):
    model = dataclasses.replace(MODEL, dropout=p, attention_dropout=attention_p, d_ff=d_ff)
    layer = EncoderLayer(model.d_model, model.n_heads, d_ff, 4, p, attention_p, "silu")
    rows, history = SHAPE.rows, SHAPE.history
    types, mask = torch.ones(rows, history, dtype=torch.long), torch.ones(rows, history, dtype=torch.bool)
    found = saved_bytes(layer, numbers(rows, history, model.d_model), types, HistoryTokens(mask))
    assert encoder_layer(model, FLOAT32, SHAPE).kept == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("attention_p", [0.0, 0.1])
def test_a_relative_time_bias_keeps_no_more_and_needs_more_while_it_computes(attention_p):
    model = dataclasses.replace(MODEL, attention_dropout=attention_p, time_buckets=8, relative_time_bias=True)
    layer = EncoderLayer(model.d_model, model.n_heads, model.d_ff, 4, 0.0, attention_p, "silu", bias_buckets=8)
    rows, history = SHAPE.rows, SHAPE.history
    types, mask = torch.ones(rows, history, dtype=torch.long), torch.ones(rows, history, dtype=torch.bool)
    times = torch.arange(history).expand(rows, -1).contiguous()
    found, form = (
        saved_bytes(layer, numbers(rows, history, model.d_model), types, HistoryTokens(mask), times),
        encoder_layer,
    )
    plain = form(dataclasses.replace(model, relative_time_bias=False), FLOAT32, SHAPE)
    assert 0.85 * plain.kept < found <= 1.02 * form(model, FLOAT32, SHAPE).kept
    assert form(model, FLOAT32, SHAPE).extra > plain.extra


@pytest.mark.parametrize("capacity", [None, 1.25])
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("d_ff", [64, 320])
def test_a_decoder_layer_keeps_what_the_form_says(capacity, p, d_ff):
    model = dataclasses.replace(MODEL, dropout=p, d_ff=d_ff, expert_capacity_factor=capacity)
    layer = DecoderLayer(model.d_model, model.n_heads, d_ff, 4, 2, capacity, p, 0.0)
    rows, history, target, _ = SHAPE
    mask, memory_mask = (torch.ones(rows, length, dtype=torch.bool) for length in (target, history))
    memory = EncodedHistory(numbers(rows, history, model.d_model), HistoryTokens(memory_mask))
    inputs = numbers(rows, target, model.d_model), mask, memory
    assert decoder_layer(model, FLOAT32, SHAPE).kept == pytest.approx(saved_bytes(layer, *inputs), rel=0.05)


@pytest.mark.parametrize(("on_kernels", "experts"), [(True, 2), (False, 4)])
def test_the_first_tokens_of_pairs_are_computed_by_their_own_experts_where_products_are_grouped(
    monkeypatch, on_kernels, experts
):
    monkeypatch.setattr(kernels, "are_expected", lambda: on_kernels)
    dropless = dataclasses.replace(MODEL, expert_capacity_factor=None)
    shape = Shape(rows=8, history=1, target=1, rejected=1)  # a row's only token is its first
    form = decoder_layer(MODEL, AUTOCAST, shape), decoder_layer(dropless, AUTOCAST, shape)
    slot = 2 * (MODEL.d_model + 2 * MODEL.d_ff)
    assert form[0].kept - form[1].kept == 8 * (experts - 2) * slot


def test_checkpointing_keeps_a_layers_input_and_one_layer():
    deep = dataclasses.replace(MODEL, n_encoder_layers=20, n_decoder_layers=1)
    deeper = dataclasses.replace(deep, n_encoder_layers=21)

    def of_one_more(checkpointing: bool) -> int:
        forms = (Activations(m, LossConfig(), FLOAT32, (0, 0), checkpointing, 1, 0, False) for m in (deep, deeper))
        first, second = (form.of_training(SHAPE) for form in forms)
        return second - first

    tokens = SHAPE.rows * SHAPE.history * MODEL.d_model
    assert of_one_more(True) == 4 * tokens
    assert of_one_more(False) == encoder_layer(MODEL, FLOAT32, SHAPE).kept


class Heads(nn.Module):
    """The loss of all labels, from the decoder's states."""

    def __init__(self, model: ModelConfig, anchored: bool):
        super().__init__()
        self.model, self.ntp, self.anchor = build_model(model, 0), NextTokenPredictionLoss(), AnchorLoss()
        self.anchored = anchored

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        batch: Any = {"labels": labels}
        with torch.no_grad():
            anchors = self.model.label_softmaxes(hidden, batch) if self.anchored else None
        outputs = self.model.target_outputs(hidden, batch, None, None, anchors=anchors)
        loss = self.ntp.of_batch(outputs, batch, labels)[0]
        return loss + self.anchor.of_batch(outputs, batch, labels)[0] if self.anchored else loss


@pytest.mark.parametrize("anchored", [False, True])
def test_heads_keep_what_the_form_says(anchored):
    model = dataclasses.replace(MODEL, n_encoder_layers=1, n_decoder_layers=1, tie_embeddings=False)
    loss = LossConfig(lambda_anchor=0.1) if anchored else LossConfig()
    form = Activations(model, loss, FLOAT32, (0, 0), False, 1, 0, False)
    shape = Shape(rows=32, history=1, target=4, rejected=0)
    labels = torch.randint(5, 1000, (shape.rows, shape.target, 3))
    hidden = numbers(shape.rows, shape.target, model.d_model)
    found = saved_bytes(Heads(model, anchored), hidden, labels)
    logits = 4 * shape.rows * shape.target * sum(model.codebook_sizes)
    tables = 4 * model.d_model * sum(model.codebook_sizes)  # without their mean: copied in half precision only
    heads = form._heads(shape) - tables
    assert logits * 32 == 352_321_536  # of 512 rows × 8 targets
    assert 0.5 * heads < found - form._logits(shape).kept < heads + 5000
    assert form._logits(shape).kept < logits
