"""A model that computes only the valid tokens of histories, compared with one that computes padding too."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from tests.conftest import TINY, make_batch
from ugt_composer.model.build import build_model
from ugt_composer.model.history_tokens import HistoryTokens

TIMES = {"num_actions": 3, "time_buckets": 8}


def make_batches(has_holes: bool = False):
    """A batch whose valid tokens are packed, and the same batch padded, with arbitrary numbers in its padding."""
    batch = make_batch(rows=5, history=9, target=3, rejected=2, seed=3)
    mask = batch["encoder_mask"]
    if has_holes:
        mask[0, 3:5] = False
    generator = torch.Generator().manual_seed(0)
    batch["encoder_actions"] = torch.randint(0, 4, mask.shape, generator=generator)
    batch["encoder_times"] = 10**9 + torch.arange(mask.shape[1]) * torch.randint(1, 10**5, (5, 1), generator=generator)
    batch["decoder_times"] = batch["encoder_times"].amax(1, keepdim=True).expand(-1, 3) + 60
    padded = {key: value.clone() for key, value in cast(dict[str, Any], batch).items()}
    padded["encoder_ids"][~mask] = 7
    return {**batch, "encoder_tokens": mask.flatten().nonzero().squeeze(1)}, padded


def results(model, batch):
    """All outputs, and the gradients of all weights."""
    model.zero_grad()
    outputs = model(batch)
    floats = {name: value for name, value in outputs.items() if value.is_floating_point()}
    generator = torch.Generator().manual_seed(1)
    sum((value * torch.randn(value.shape, generator=generator)).sum() for value in floats.values()).backward()
    return floats | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= 1e-5 * value.norm() + 1e-9, name
    return found


@pytest.mark.parametrize(
    "keys",
    [
        {"user_pooling": "first"},
        {"user_pooling": "last", "decoder_start": "user"},
        {"user_pooling": "first_and_last", "history_positions": "from_end"},
        {"user_pooling": "mean", **TIMES},
        {"relative_time_bias": True, **TIMES},
        {"relative_time_bias": True, "attention_dropout": 1e-9, **TIMES},
        {"attention_dropout": 1e-9, "attention_activation": "relu"},
    ],
)
def test_outputs_and_gradients_do_not_depend_on_padding(keys):
    model = build_model(replace(TINY, dropout=0.0, expert_capacity_factor=None, **keys), 1).train()
    packed, padded = make_batches()
    assert len(equal(results(model, packed), results(model, padded))) > 60


def test_masked_tokens_between_valid_ones_are_left_out(tiny_model):
    packed, padded = make_batches(has_holes=True)
    model = tiny_model()
    assert model.encode(packed).vectors.shape == (int(packed["encoder_mask"].sum()), TINY.d_model)
    equal(results(model, packed), results(model, padded))


def test_packing_undoes_padding():
    batch, _ = make_batches(has_holes=True)
    tokens = HistoryTokens.of(batch)
    x = torch.randn(len(batch["encoder_tokens"]), 4, dtype=torch.float64, requires_grad=True)
    padded = tokens.pad(x)
    assert torch.equal(padded[tokens.mask], x)
    assert torch.equal(tokens.pack(padded), x)
    valid = tokens.mask[..., None]
    assert torch.autograd.gradcheck(lambda given: tokens.pad(given) * valid, x)
    for move, given in ((tokens.pack, padded.detach().requires_grad_()), (tokens.first, x), (tokens.last, x)):
        assert torch.autograd.gradcheck(move, given)
    assert tokens.offsets().tolist() == [0, *tokens.mask.sum(1).cumsum(0).tolist()]
