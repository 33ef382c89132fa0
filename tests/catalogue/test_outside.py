import numpy as np

from ugt_composer.catalogue.id_set import SemanticIdSet
from ugt_composer.catalogue.outside import CHOSEN, HISTORY, REJECTED, TARGET, ItemCounts, outside_items
from ugt_composer.data.codec import Row
from ugt_composer.data.row_batch import batch_of
from ugt_composer.vocabulary import BOS, CLS, IGNORE_INDEX, ITEM, UNK, USER

KNOWN = SemanticIdSet(np.array([[5, 6, 7], [5, 6, 8]]))
IN, OUT = [5, 6, 7], [5, 6, 9]
ACTION, CONTEXT = 2, 3


def row(history, labels, rejected=()) -> Row:
    """A row whose history is [(ids, token type)], and whose labels are lists of three."""
    encoder = [[*ids, at, token_type] for at, (ids, token_type) in enumerate(history)]
    decoder = [[BOS, BOS, BOS, at, ITEM, *ids] for at, ids in enumerate(labels)]
    tables = (np.array(table, np.int64) for table in (encoder, decoder, list(rejected)))
    return Row("u", *(table.reshape(-1, size) for table, size in zip(tables, (5, 8, 3), strict=True)))


def test_only_items_are_counted():
    history = [
        ([CLS] * 3, USER),
        ([5, 6, 99], ACTION),
        ([5, 6, 99], CONTEXT),
        ([UNK] * 3, ITEM),
        (IN, ITEM),
        (OUT, ITEM),
    ]
    labels = [IN, [IGNORE_INDEX] * 3, [5, 6, IGNORE_INDEX], OUT]
    counts, first = outside_items(batch_of([row(history, labels)]), KNOWN)
    assert counts.items == {HISTORY: 2, TARGET: 2}
    assert counts.outside == {HISTORY: 1, TARGET: 1}
    assert str(counts) == "1 of 2 history items and 1 of 2 targets"
    assert [str(item) for item in first] == ["history item 5/6/9", "target 5/6/9"]


def test_the_first_row_of_each_kind_is_found():
    rows = [row([(IN, ITEM)], [IN], [IN, IN]), row([(IN, ITEM)], [IN], [IN, OUT]), row([(OUT, ITEM)], [OUT], [IN])]
    counts, first = outside_items(batch_of(rows), KNOWN)
    assert {item.kind: item.row for item in first} == {HISTORY: 2, CHOSEN: 2, REJECTED: 1}
    assert counts.items == {HISTORY: 3, CHOSEN: 3, REJECTED: 5}
    assert str(counts) == "1 of 3 history items, 1 of 3 chosen items and 1 of 5 rejected items"


def test_the_kind_with_the_largest_fraction_decides():
    counts = ItemCounts()
    counts.items.update({HISTORY: 1000, TARGET: 10})
    counts.outside.update({TARGET: 1})
    assert counts.above(0.05)
    assert not counts.above(0.1)
    assert not ItemCounts().above(0.0)
