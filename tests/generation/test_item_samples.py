import numpy as np
import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.generation.head_tables import TableHeads, random_trie, users
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.generation.item_log_probs import score_items
from ugt_composer.generation.item_samples import distributions_at, draw_group, sample_items
from ugt_composer.row_random import RowNoise

SIZES, ITEMS, USERS, DRAWS = (8, 9, 10), 20, 3, 40
TRIE = random_trie(SIZES, ITEMS)
HEADS = TableHeads(SIZES, USERS)


def draw(hidden, row_ids, step=0, count=DRAWS):
    return sample_items(HEADS, hidden, TRIE, count, RowNoise(row_ids, torch.tensor(step), seed=1))


def test_items_are_drawn_with_exactly_their_probabilities():
    hidden = users(USERS).repeat(500, 1)
    samples = draw(hidden, torch.arange(len(hidden)))
    exact = score_items(HEADS, users(USERS), TRIE.items.expand(USERS, -1, -1), TRIE).exp()
    torch.testing.assert_close(exact.sum(1), torch.ones(USERS))
    for user, expected in enumerate(exact.numpy()):
        counts = torch.bincount(samples.items[user::USERS].flatten(), minlength=ITEMS).numpy()
        often = expected * counts.sum() >= 5
        counts, expected = counts[often], expected[often].astype(float)
        assert stats.chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > 0.01


def test_log_probs_are_those_of_the_items_and_every_distribution_sums_to_one():
    samples = draw(users(USERS), torch.arange(USERS))
    assert torch.equal(TRIE.items[samples.items], samples.ids)
    scored = score_items(HEADS, users(USERS), samples.ids, TRIE)
    torch.testing.assert_close(samples.log_probs.sum(-1), scored)
    for level, distribution in enumerate(samples.distributions):
        assert distribution.shape[:2] == (USERS, DRAWS if level else 1)
        torch.testing.assert_close(distribution.exp().sum(-1), torch.ones(distribution.shape[:2]))


def test_retired_items_are_drawn_as_if_the_catalogue_did_not_have_them():
    retired = (np.arange(ITEMS) % 3 == 0) | (TRIE.items[:, 0] == 6).numpy()
    alone, trie = ItemTrie.from_triples(TRIE.items[~retired]), ItemTrie.from_triples(TRIE.items, retired)
    targets = TRIE.items[[1, 2, 3]]  # the last one is retired
    noise = RowNoise(torch.arange(USERS), torch.tensor(0), seed=1)
    group = draw_group(HEADS, users(USERS), targets, trie, 400, noise)
    assert torch.equal(trie.items[group["group_items"]], group["group_ids"])
    assert (alone.find(group["group_ids"]) >= 0).all()
    assert len(group["group_items"].unique()) > len(alone) / 2
    scored = score_items(HEADS, users(USERS), group["group_ids"], alone)
    torch.testing.assert_close(group["group_log_probs"].sum(-1), scored)
    for level in (1, 2, 3):
        total = group[f"group_l{level}_log_probs"].exp().sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total))
    assert group["group_target_items"].tolist() == [1, 2, -1]
    expected = score_items(HEADS, users(USERS), targets[:, None], alone)[:, 0]
    torch.testing.assert_close(group["group_target_log_probs"], expected)


def test_another_model_gives_its_distributions_at_the_same_items():
    samples = draw(users(USERS), torch.arange(USERS))
    same = distributions_at(HEADS, users(USERS), TRIE, samples.ids)
    assert all(torch.equal(one, other) for one, other in zip(same, samples.distributions, strict=True))
    others = distributions_at(TableHeads(SIZES, USERS, seed=5), users(USERS), TRIE, samples.ids)
    assert not any(torch.equal(one, other) for one, other in zip(others, samples.distributions, strict=True))


def test_draws_depend_on_row_and_step_and_not_on_the_batch():
    rows = torch.tensor([11, 4, 9])
    samples = draw(users(USERS), rows)
    alone = [draw(users(USERS)[row : row + 1], rows[row : row + 1]).items for row in (2, 0, 1)]
    assert torch.equal(samples.items[[2, 0, 1]], torch.cat(alone))
    assert torch.equal(samples.items, draw(users(USERS), rows).items)
    assert not torch.equal(samples.items, draw(users(USERS), rows, step=1).items)
    assert not torch.equal(samples.items, draw(users(USERS), rows + 1).items)


@pytest.mark.parametrize("grad", [False, True])
def test_drawing_reads_no_value_from_the_device(grad):
    """Fake tensors have no values: any operation that would wait for a GPU raises an error."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.set_grad_enabled(grad):
        hidden = torch.randn(USERS, 6, requires_grad=grad)
        samples = sample_items(fake_heads, hidden, TRIE, DRAWS, RowNoise(torch.arange(USERS), torch.tensor(0), 1))
        assert samples.ids.shape == (USERS, DRAWS, 3)


def fake_heads(level, hidden, prefix, beam, ids):
    return hidden.sum(-1).gather(1, beam) + prefix.sum((1, 2))[:, None] + ids
