"""Lists without the items that are withheld, against the filtered list of all items."""

from itertools import product

import numpy as np
import pytest
import torch

from tests.generation.head_tables import TableHeads, users
from ugt_composer.catalogue.open_nodes import OnlyItems
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.generation.beam_search import beam_search

SIZES, B, N = (9, 10, 12), 7, 120
PAD = (0, 0, 0)


class Case:
    """Random items of which some share an id and some are withheld, and lists of some of the users."""

    def __init__(self, seed: int, kept: float = 0.6):
        random = np.random.default_rng(seed)
        every = np.array(list(product(*(range(5, size) for size in SIZES))))
        self.triples = np.concatenate([every[random.permutation(len(every))[:N]]] * 2)[: N + 30]
        self.withheld = random.random(len(self.triples)) > kept
        self.everything = ItemTrie.from_triples(self.triples)
        self.trie = ItemTrie.from_triples(self.triples, self.withheld)
        self.heads = TableHeads(SIZES, B, seed)
        self.exclude = [self.draw(random, random.integers(30)) for _ in range(B)]
        self.only = [self.draw(random, count) if count is not None else None for count in (None, 0, 1, 5, 40, 90, None)]
        self.scores = torch.from_numpy(random.normal(size=(B, N)).astype(np.float32) * 3)

    def draw(self, random, count):
        return [tuple(self.triples[row]) for row in random.integers(len(self.triples), size=count)]

    @property
    def arguments(self) -> dict:
        longest = max(len(items or ()) for items in self.only)
        lists = torch.tensor([[*(items or ()), *[PAD] * (longest - len(items or ()))] for items in self.only])
        most = max(map(len, self.exclude))
        return {
            "exclude": torch.tensor([[*items, *[PAD] * (most - len(items))] for items in self.exclude]),
            "only": OnlyItems(lists, torch.tensor([items is not None for items in self.only])),
        }

    def left(self, user: int) -> set[tuple]:
        """The triples of which an item may be recommended to the user."""
        open_items = {tuple(item) for item in self.triples[~self.withheld].tolist()}
        mine = self.only[user]
        return {item for item in open_items - set(self.exclude[user]) if mine is None or item in set(mine)}


def as_pairs(found, user):
    """(ids, score, log-probability) of a user's list."""
    number = int((found.item_index[user] >= 0).sum())
    values = zip(found.ids[user].tolist(), found.scores[user].tolist(), found.log_probs[user].tolist(), strict=True)
    return [(tuple(ids), score, log_prob) for ids, score, log_prob in values][:number]


@pytest.mark.parametrize("memory_bound", [1 << 28, 10_000])
@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("over_catalogue", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_list_is_the_filtered_list_of_all_items(seed, over_catalogue, weight, memory_bound):
    case = Case(seed)
    scored = (lambda rows: weight * case.scores[rows]) if weight else None
    options = {"item_scores": scored, "over_catalogue": over_catalogue, "memory_bound": memory_bound}
    whole = beam_search(case.heads, users(B), case.everything, N, 200, **options)
    found = beam_search(case.heads, users(B), case.trie, 20, 200, **options, **case.arguments)
    for user in range(B):
        left = case.left(user)
        wanted = [entry for entry in as_pairs(whole, user) if entry[0] in left][:20]
        shown = as_pairs(found, user)
        assert [ids for ids, *_ in shown] == [ids for ids, *_ in wanted]
        for number in (1, 2):
            numbers = [entry[number] for entry in shown]
            assert numbers == pytest.approx([entry[number] for entry in wanted], abs=1e-5)
        assert (found.scores[user, len(shown) :] == float("-inf")).all()
        index = found.item_index[user, : len(shown)]
        assert torch.equal(case.trie.items[index], found.ids[user, : len(shown)])


@pytest.mark.parametrize("width", [1, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_a_narrow_beam_searches_as_if_the_catalogue_had_only_what_is_left(seed, width):
    case = Case(seed)
    found = beam_search(case.heads, users(B), case.trie, width, width, **case.arguments)
    for user in range(B):
        left = case.left(user)
        if not left:
            assert as_pairs(found, user) == []
            continue
        alone = beam_search(case.heads, users(B), ItemTrie.from_triples(np.array(sorted(left))), width, width)
        shown = as_pairs(found, user)
        assert [ids for ids, *_ in shown] == [ids for ids, *_ in as_pairs(alone, user)]
        assert len(shown) == min(width, len(left))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_narrow_beam_finds_as_many_items_as_are_left(weight):
    for seed in range(5):
        case = Case(seed, kept=0.1)
        scored = (lambda rows, case=case: case.scores[rows]) if weight else None
        found = beam_search(case.heads, users(B), case.trie, 4, 4, item_scores=scored, **case.arguments)
        for user in range(B):
            assert len(as_pairs(found, user)) == min(4, len(case.left(user)))


def test_of_a_catalogue_that_is_withheld_nothing_is_recommended():
    case = Case(0, kept=0.0)
    for scored in (None, lambda rows: case.scores[rows]):
        found = beam_search(case.heads, users(B), case.trie, 5, 5, item_scores=scored)
        assert (found.item_index == -1).all()
        assert (found.scores == float("-inf")).all()


def test_lists_of_items_of_no_catalogue_are_refused():
    only = OnlyItems(torch.zeros(B, 1, 3, dtype=torch.int64), torch.ones(B, dtype=torch.bool))
    with pytest.raises(ValueError, match="needs a trie"):
        beam_search(TableHeads(SIZES, B), users(B), None, 1, 1, only=only)
