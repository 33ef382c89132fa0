import pytest

from tests.generation.head_tables import random_trie
from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.checkpoint.portable import load_portable
from ugt_composer.data.codec import LABELS, decode_row
from ugt_composer.data.evaluation_dataset import RowFolder
from ugt_composer.inference.exact_lists import beam_widths, exact_lists
from ugt_composer.inference.recommender import Recommender


@pytest.fixture(scope="module")
def recommender(shop, stages):
    model, *_ = load_portable(stages / "stage2/best")
    return Recommender(model, ItemTrie.from_triples(Catalogue.load(shop / "catalogue.jsonl").triples))


def test_narrow_beams_that_become_wider_give_the_lists_of_a_beam_with_every_prefix(shop, recommender):
    folder = RowFolder(str(shop / "eval"), None)
    rows = [decode_row(folder[number]) for number in range(len(folder))]
    excluded = [[tuple(row.decoder[0, LABELS].tolist())] for row in rows]
    widest, not_proven = exact_lists(recommender, rows, excluded, 4, [60])
    assert not_proven == 0
    assert exact_lists(recommender, rows, excluded, 4, [4, 6, 60]) == (widest, 0)
    narrow, not_proven = exact_lists(recommender, rows, excluded, 4, [4])
    wrong = sum(one != other for one, other in zip(narrow, widest, strict=True))
    assert wrong <= not_proven < len(rows)


def test_the_last_beam_holds_every_prefix_that_fits_into_memory():
    trie = random_trie((30, 60, 90), 3000)
    prefixes = len(trie.levels[1])
    assert 64 < prefixes <= 25 * 55
    widths = beam_widths(trie, (30, 60, 90), 10, 1 << 40)
    assert (widths[0], widths[-1]) == (64, prefixes)
    assert beam_widths(trie, (30, 60, 90), 10, 1 << 10) == [64]
    assert beam_widths(trie, (30, 60, 90), prefixes, 1 << 40) == [prefixes]
