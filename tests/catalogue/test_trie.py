import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt_composer.catalogue.trie import ItemTrie

TRIPLES = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=40)


@given(TRIPLES)
@settings(max_examples=60, deadline=None)
def test_levels_hold_the_sorted_prefixes_and_ranges_their_children(triples):
    trie = ItemTrie.from_triples(np.array(triples))
    assert [tuple(item) for item in trie.items.tolist()] == sorted(set(triples))
    above = [()]
    for level, here in enumerate(trie.levels):
        prefixes = sorted({triple[: level + 1] for triple in triples})
        assert [above[parent] + (last,) for parent, last in zip(here.parents, here.ids, strict=True)] == prefixes
        for node, prefix in enumerate(above):
            children = prefixes[here.first[node] : here.first[node + 1]]
            assert children == [longer for longer in prefixes if longer[:level] == prefix]
        above = prefixes


@given(TRIPLES, st.lists(st.tuples(*[st.integers(-1, 6)] * 3), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_find_gives_the_index_or_minus_one(triples, wanted):
    trie = ItemTrie.from_triples(np.array(triples))
    order = sorted(set(triples))
    expected = [order.index(triple) if triple in order else -1 for triple in wanted]
    assert trie.find(torch.tensor(wanted)).tolist() == expected
    assert trie.find(torch.tensor(wanted).T.contiguous().T[None])[0].tolist() == expected


@given(TRIPLES, st.data())
@settings(max_examples=60, deadline=None)
def test_children_fill_slots_in_order_of_nodes_and_dead_beams_have_none(triples, data):
    trie = ItemTrie.from_triples(np.array(triples))
    here = trie.levels[1]
    nodes = sorted(data.draw(st.sets(st.integers(0, len(trie.levels[0]) - 1), min_size=1)))
    alive = data.draw(st.lists(st.booleans(), min_size=len(nodes), max_size=len(nodes)))
    beam, ids, found, filled = trie.children(1, torch.tensor([nodes]), torch.tensor([alive]))
    expected = [
        (place, here.ids[child].item(), child)
        for place, node in enumerate(nodes)
        if alive[place]
        for child in range(here.first[node], here.first[node + 1])
    ]
    slots = torch.stack([beam[filled], ids[filled], found[filled]], dim=1)
    assert [tuple(slot) for slot in slots.tolist()] == expected
    assert ((found >= 0) & (found < len(here))).all()


def test_slots_are_the_largest_families_not_the_largest_family_for_every_beam():
    triples = [(5, 5, n) for n in range(100)] + [(5, second, 0) for second in range(6, 20)]
    trie = ItemTrie.from_triples(np.array(triples))
    assert [trie.slots(2, width) for width in (1, 2, 3, 1000)] == [100, 101, 102, 114]


@pytest.mark.parametrize("triples", [np.empty((0, 3)), np.zeros((2, 2)), np.array([[5, 5, -1]])])
def test_an_invalid_catalogue_is_refused(triples):
    with pytest.raises(ValueError, match="a trie is built from"):
        ItemTrie.from_triples(triples)


def test_an_id_outside_its_codebook_is_named():
    trie = ItemTrie.from_triples(np.array([[5, 9, 5]]))
    trie.check((6, 10, 6))
    with pytest.raises(ValueError, match="l2 id 9, the codebook 9 ids"):
        trie.check((6, 9, 6))
