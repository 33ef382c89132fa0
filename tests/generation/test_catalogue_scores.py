"""The scores of a catalogue too large to hold one per item, compared with those that are held."""

import pytest
import torch
import torch.nn.functional as F

from tests.generation.head_tables import TableHeads, random_trie, users
from ugt_composer.catalogue.neighbours import ItemNeighbours
from ugt_composer.catalogue.open_nodes import OnlyItems
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.generation import catalogue_scores, catalogue_vectors
from ugt_composer.generation.beam_search import beam_search
from ugt_composer.generation.catalogue_vectors import CatalogueVectors
from ugt_composer.generation.item_scores import ItemScores, NeighbourScores, SeenItems

SIZES = (9, 10, 12)
B, D, N = 7, 6, 140


@pytest.fixture(params=[1 << 20, 4 * 5], ids=["at once", "in blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setitem(catalogue_scores.BLOCK_BYTES, "cpu", request.param)
    monkeypatch.setitem(catalogue_vectors.BLOCK_BYTES, "cpu", request.param)


def tables(seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    made = tuple(torch.randn(size, D, generator=generator) for size in SIZES)
    return (made[0] + offset, *made[1:])


def held(trie, of_levels):
    return sum(table[trie.items[:, level]] for level, table in enumerate(of_levels))


def neighbours(count, seed=0):
    """Of each item three, of which some are missing and some repeat."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(count, 3, generator=generator) / 3
    others = torch.randint(count + 1, (count, 3), generator=generator)
    recent = torch.randint(-1, count, (B, 4), generator=generator)
    recent[0] = -1
    return NeighbourScores(ItemNeighbours(others, probabilities.masked_fill(others == count, 0.0)), recent, 0.3)


def seen(count, seed=0, strength=3.0):
    generator = torch.Generator().manual_seed(seed)
    items = torch.stack([torch.randperm(count + 1, generator=generator)[:5] for _ in range(B)])
    items[1:3, 2:] = count  # fewer
    return SeenItems(items.sort(1).values, torch.randn(B, 1, generator=generator) * strength)


def of_a_large_catalogue(scores, trie, of_levels):
    vectors = CatalogueVectors.of(trie, of_levels)
    return ItemScores(
        scores.users, vectors, scores.temperature, scores.weight, scores.similarity, scores.neighbours, scores.repeats
    )


def some_scores(trie, similarity, with_neighbours, with_repeats, of_levels, weight=0.5):
    people = torch.randn(B, D, generator=torch.Generator().manual_seed(5))
    return ItemScores(
        people,
        held(trie, of_levels),
        0.3,
        weight,
        similarity,
        neighbours(len(trie)) if with_neighbours else None,
        seen(len(trie)) if with_repeats else None,
    )


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize(
    ("with_neighbours", "with_repeats"), [(False, False), (True, False), (False, True), (True, True)]
)
@pytest.mark.parametrize("beam_width", [3, 200])
@pytest.mark.parametrize("limited", [False, True])
def test_searches_find_what_they_find_with_scores_of_all_items(
    blocks, similarity, with_neighbours, with_repeats, beam_width, limited
):
    trie, generator = random_trie(SIZES, N, 1), torch.Generator().manual_seed(2)
    exclude = only = None
    if limited:
        trie = ItemTrie.from_triples(trie.items.numpy(), (torch.rand(N, generator=generator) < 0.3).numpy())
        exclude = trie.items[torch.randint(N, (B, 30), generator=generator)]
        allowed = trie.items[torch.randint(N, (B, 60), generator=generator)]
        only = OnlyItems(allowed, torch.tensor([True, False] * 4)[:B])
    heads, of_levels = TableHeads(SIZES, B, 3), tables()
    scores = some_scores(trie, similarity, with_neighbours, with_repeats, of_levels)
    large = of_a_large_catalogue(scores, trie, of_levels)

    def search(item_scores):
        return beam_search(heads, users(B), trie, 3, beam_width, exclude, item_scores, only=only, memory_bound=1 << 16)

    expected, found = search(scores), search(large)
    assert torch.equal(found.item_index, expected.item_index)
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.log_probs, expected.log_probs)
    torch.testing.assert_close(found.best_dropped, expected.best_dropped)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("with_others", [False, True])
@pytest.mark.parametrize("offset", [0, 1000])
def test_all_scores_are_those_of_held_vectors(blocks, similarity, with_others, offset):
    trie, of_levels = random_trie(SIZES, N, 1), tables(offset=offset)
    scores = some_scores(trie, similarity, with_others, with_others, of_levels)
    people, items = scores.users.double(), held(trie, [table.double() for table in of_levels])
    expected = (
        F.normalize(people, dim=-1) @ F.normalize(items, dim=-1).T if similarity == "cosine" else people @ items.T
    )
    found = of_a_large_catalogue(scores, trie, of_levels)(slice(1, 5))
    tolerance = {"rtol": 1e-5, "atol": 1e-5 if offset == 0 else 2e-3}
    torch.testing.assert_close(found, scores(slice(1, 5)), **tolerance)
    if not with_others:
        wanted = 0.5 * (expected / 0.3).log_softmax(-1)[1:5]
        torch.testing.assert_close(found.double(), wanted, **tolerance)


@pytest.mark.parametrize("strength", [-40.0, 40.0])
def test_a_history_that_takes_all_or_nothing_loses_no_digits(strength):
    """The history's items have nearly all of the probability before their biases, or after them."""
    trie, of_levels = random_trie(SIZES, N, 1), tables()
    scores = some_scores(trie, "dot", False, True, of_levels, weight=1.0)
    top = scores(slice(0, B)).topk(5).indices.sort(1).values
    repeats = SeenItems(top, torch.full((B, 1), strength))
    scores = ItemScores(scores.users * 5, scores.items, 0.3, 1.0, "dot", repeats=repeats)
    heads = TableHeads(SIZES, B, 3)
    large = of_a_large_catalogue(scores, trie, of_levels)
    expected, found = (beam_search(heads, users(B), trie, 9, 200, None, of) for of in (scores, large))
    assert torch.equal(found.item_index, expected.item_index)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-4)


def test_vectors_their_mean_and_lengths_are_those_of_all_items(blocks):
    trie, of_levels = random_trie(SIZES, N, 1), tables(offset=2.0)
    vectors, items = CatalogueVectors.of(trie, of_levels), held(trie, of_levels)
    torch.testing.assert_close(vectors.at(trie.items), items)
    torch.testing.assert_close(vectors.mean(), items.mean(0))
    torch.testing.assert_close(vectors.mean_direction(), F.normalize(items, dim=-1).mean(0))
    torch.testing.assert_close(vectors.normalised().scales, 1 / items.norm(dim=1))
