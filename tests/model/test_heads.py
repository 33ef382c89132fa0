"""Logits of the level heads: an offset that all ids share must not cost the softmax any precision."""

import pytest
import torch
import torch.nn.functional as F

from ugt_composer.generation.item_log_probs import score_over_codebooks
from ugt_composer.model.embedding import ItemEmbedding
from ugt_composer.model.heads import LevelHead

CODES, D = 60, 16


def make_head(level: int, offset: float, tied: bool) -> tuple[LevelHead, ItemEmbedding]:
    """A head whose logits spread by about 2 around `offset`: half of it from the bias, half from the ids' vectors."""
    torch.manual_seed(level)
    embedding, head = ItemEmbedding((CODES,) * 3, D), LevelHead(level, CODES, D, tied)
    weight = embedding.levels[level].weight if tied else head.weight
    with torch.no_grad():
        weight.copy_(torch.randn(CODES, D) * 0.5)
        head.bias.copy_(torch.randn(CODES))
        head.norm.bias[0], head.norm.weight[0] = 1.0, 0.0  # each state is 1 along the first axis
        weight[:, 0] += offset / 2
        head.bias += offset / 2
    return head, embedding


@pytest.mark.parametrize("offset", [0, 100, 10_000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("wanted", [None, 2, 40], ids=["codebook", "few ids", "many ids"])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_common_offset_of_ids_changes_no_probability_in_half_precision(offset, dtype, tied, wanted, beams):
    generator = torch.Generator().manual_seed(0)
    hidden, prefix = torch.randn(4, beams, D, generator=generator), torch.randint(CODES, (4, beams, 1))
    beam = ids = None
    if wanted is not None:
        beam = torch.randint(beams, (4, wanted), generator=generator).sort(1).values
        ids = torch.randint(CODES, (4, wanted), generator=generator)
    plain, its_embedding = make_head(1, 0, tied)
    shifted, embedding = make_head(1, offset, tied)
    expected = plain.double()(hidden.double(), prefix, beam, ids, embedding=its_embedding.double()).log_softmax(-1)
    with torch.autocast("cpu", dtype):
        found = shifted(hidden, prefix, beam, ids, embedding=embedding)
    assert found.dtype == torch.float32
    tolerance = 8 * torch.finfo(dtype).eps + offset * 1e-6
    torch.testing.assert_close(found.double().log_softmax(-1), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("offset", [100, 10_000])
def test_log_probabilities_of_items_have_no_offset_in_them(offset):
    generator = torch.Generator().manual_seed(0)
    hidden, items = torch.randn(4, D, generator=generator), torch.randint(CODES, (4, 5, 3), generator=generator)
    log_probs = []
    for moved in (0, offset):
        heads = [make_head(level, moved, tied=False) for level in range(3)]
        with torch.autocast("cpu", torch.bfloat16):

            def of_ids(level, states, prefix, ids, heads=heads):
                head, embedding = heads[level]
                return head(states, prefix, labels=ids, embedding=embedding).logps

            log_probs.append(score_over_codebooks(of_ids, hidden, items))
    torch.testing.assert_close(log_probs[1], log_probs[0], rtol=0, atol=0.1)


def test_the_gradient_along_a_common_offset_of_ids_is_zero():
    """Otherwise Adam, which scales all gradients to steps of the same size, would follow rounding errors along it."""
    head, embedding = make_head(0, offset=100, tied=False)
    hidden, labels = torch.randn(64, D), torch.randint(CODES, (64,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(head(hidden, labels.new_empty(64, 0), embedding=embedding), labels)
    loss.backward()
    for gradient in (head.bias.grad, head.weight.grad):
        assert gradient.abs().max() > 1e-3
        assert gradient.sum(0).abs().max() < 1e-5 * gradient.abs().max()
