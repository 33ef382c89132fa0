"""Vectors of (L1, L2) pairs in the second level's head."""

import math

import pytest
import torch

from ugt_composer.model import pair_products
from ugt_composer.model.embedding import ItemEmbedding
from ugt_composer.model.heads import LevelHead, pair_bucket
from ugt_composer.model.pair_products import row_products

CODES, D, BUCKETS, B, W, R = 30, 8, 1000, 4, 3, 7


def made() -> tuple[LevelHead, LevelHead, ItemEmbedding]:
    """A head with vectors of pairs, the same without them, and the embedding of both."""
    torch.manual_seed(0)
    head, embedding = LevelHead(1, CODES, D, True, BUCKETS), ItemEmbedding((CODES,) * 3, D)
    assert head.pairs is not None
    plain = LevelHead(1, CODES, D, True)
    plain.load_state_dict({name: value for name, value in head.state_dict().items() if not name.startswith("pairs")})
    torch.nn.init.normal_(head.pairs.weight)
    return head, plain, embedding


def asked(ids: int = R) -> tuple[torch.Tensor, ...]:
    """hidden, prefix, beam, ids."""
    generator = torch.Generator().manual_seed(1)
    prefix = torch.randint(5, CODES, (B, W, 1), generator=generator)
    beam = torch.randint(W, (B, ids), generator=generator).sort(1).values
    return (
        torch.randn(B, W, D, generator=generator),
        prefix,
        beam,
        torch.randint(5, CODES, (B, ids), generator=generator),
    )


@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("ids", [2, R, 40], ids=["gathered", "some", "from the codebook"])
@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_each_pair_adds_the_product_of_its_own_vector(monkeypatch, with_gradients, ids, block):
    monkeypatch.setattr(pair_products, "BLOCK_BYTES", block)
    head, plain, embedding = made()
    inputs = asked(ids)
    hidden, prefix, beam, wanted = inputs
    with torch.set_grad_enabled(with_gradients):
        difference = head(*inputs, embedding=embedding) - plain(*inputs, embedding=embedding)
    mixed = torch.nn.functional.silu(plain.hidden_proj(hidden) + plain.prefix_proj(embedding(prefix)))
    states = plain.norm(hidden + plain.out_proj(mixed))
    for b in range(B):
        for r in range(ids):
            of_pair = head.pairs.weight[pair_bucket(prefix[b, beam[b, r], 0], wanted[b, r], BUCKETS)]
            torch.testing.assert_close(difference[b, r], states[b, beam[b, r]] @ of_pair, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_plain_product(monkeypatch):
    monkeypatch.setattr(pair_products, "BLOCK_BYTES", 3 * 2 * 4 * D)
    generator = torch.Generator().manual_seed(0)
    owners, rows = (torch.randint(5, (50,), generator=generator) for _ in range(2))
    outer = torch.randn(50, generator=generator)
    gradients = []
    for product in (row_products, lambda s, t, o, r: (s[o] * t[r]).sum(-1)):
        states, table = (torch.randn(5, D, generator=generator.manual_seed(1)).requires_grad_() for _ in range(2))
        (product(states, table, owners, rows) * outer).sum().backward()
        gradients.append((states.grad, table.grad))
    torch.testing.assert_close(*gradients)


def test_buckets_are_spread_and_do_not_depend_on_the_codebooks():
    l1, l2 = torch.meshgrid(torch.arange(64), torch.arange(256), indexing="ij")
    used = torch.bincount(pair_bucket(l1, l2, 4096).flatten(), minlength=4096)
    assert (used == 0).float().mean() < 2 * math.exp(-4), "as rare as at random: 4 pairs a bucket"
    assert used.max() < 20


def test_a_pair_that_nobody_trained_adds_nothing():
    head, plain, embedding = made()
    torch.nn.init.zeros_(head.pairs.weight)
    assert head(*asked(), embedding=embedding).equal(plain(*asked(), embedding=embedding))
