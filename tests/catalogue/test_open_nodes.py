"""Which nodes may be chosen, against sets of prefixes in Python."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt_composer.catalogue.open_nodes import OnlyItems
from ugt_composer.catalogue.trie import ItemTrie

TRIPLE = st.tuples(*[st.integers(0, 3)] * 3)
TRIPLES = st.lists(TRIPLE, min_size=1, max_size=30)
LISTS = st.lists(TRIPLE, min_size=5, max_size=5)


@given(st.data(), TRIPLES, st.lists(st.tuples(LISTS, LISTS, st.booleans()), min_size=1, max_size=3))
@settings(max_examples=80, deadline=None)
def test_a_node_may_be_chosen_if_an_item_that_is_left_is_below_it(data, triples, users):
    withheld = data.draw(st.lists(st.booleans(), min_size=len(triples), max_size=len(triples)))
    trie = ItemTrie.from_triples(np.array(triples), np.array(withheld))
    exclude, only, applies = zip(*users, strict=True)
    limits = trie.limits(torch.tensor(exclude), OnlyItems(torch.tensor(only), torch.tensor(applies)))
    open_items = {item for item, gone in zip(triples, withheld, strict=True) if not gone}
    for level, limit in enumerate(limits):
        prefixes = sorted({item[: level + 1] for item in triples})
        nodes = torch.arange(len(prefixes)).expand(len(users), -1).contiguous()
        allowed = limit.allows(nodes, torch.ones_like(nodes, dtype=torch.bool))
        scores = limit.masked(torch.zeros(len(users), len(prefixes)))
        for user, (gone, mine, has_list) in enumerate(users):
            left = {item[: level + 1] for item in open_items - set(gone) if not has_list or item in mine}
            assert allowed[user].tolist() == [prefix in left for prefix in prefixes]
        if level == 2:
            assert torch.equal(scores == 0, allowed)


@given(st.data(), TRIPLES)
@settings(max_examples=60, deadline=None)
def test_the_items_that_share_an_id_keep_their_numbers(data, triples):
    withheld = data.draw(st.lists(st.booleans(), min_size=len(triples), max_size=len(triples)))
    trie = ItemTrie.from_triples(np.array(triples), np.array(withheld))
    numbers, members = [], []
    for item in map(tuple, trie.items.tolist()):
        same = [gone for other, gone in zip(triples, withheld, strict=True) if other == item]
        members.append(same.count(False))
        numbers += [number for number, gone in enumerate(same) if not gone]
    assert trie.open.members.tolist() == members
    assert trie.open.numbers.tolist() == numbers
    assert trie.recommendable == len(numbers) == withheld.count(False)
    assert trie.open.items.sum() == len(numbers)
