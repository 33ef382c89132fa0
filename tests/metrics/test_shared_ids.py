"""Metrics of items that share semantic IDs, against an enumeration of the items that may be meant."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics.ranked_cases import CATALOGUE, DISTINCT_ROWS, WIDTH, as_tensors
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.losses.unified import UnifiedLoss
from ugt_composer.metrics.batch import ID_METRICS, EvaluationBatch, rank_batch
from ugt_composer.metrics.calculator import MetricsCalculator
from ugt_composer.metrics.torch_metrics import evaluation_metrics

CUTS = (1, 3, 7, WIDTH)
MEANS = UnifiedLoss().means
SIZES = st.lists(st.integers(1, 4), min_size=len(CATALOGUE), max_size=len(CATALOGUE))


def found(rows, sizes, target_members=None, withheld=None):
    trie = ItemTrie.from_triples(torch.tensor(CATALOGUE).repeat_interleave(torch.tensor(sizes), dim=0), withheld)
    assert trie.members.tolist() == sizes
    has_shared_ids = trie.has_shared_ids or withheld is None
    counted, members = torch.ones(len(rows), dtype=torch.bool), trie.members if has_shared_ids else None
    recommended, targets, mask = as_tensors(rows)
    ranked = rank_batch(recommended, targets, mask, counted, members, target_members, trie.open)
    metrics = evaluation_metrics(MEANS, {}, CUTS, trie.recommendable, has_shared_ids)
    batch = EvaluationBatch(ranked, torch.zeros(len(MEANS)), torch.zeros(len(MEANS)), torch.zeros(2))
    for metric in metrics.values():
        metric.update(batch)
    return {name: metric.compute().item() for name, metric in metrics.items() if name != "preference_accuracy"}


def items_of(triple, sizes):
    """The items of a semantic ID, as triples of which each is one item, with the same first two levels."""
    return [(*triple[:2], 100 * triple[2] + member) for member in range(sizes[CATALOGUE.index(triple)])]


def expected(rows, sizes, withheld=()):
    """Means over all choices of items for the targets, each as likely as the others."""
    sums = dict.fromkeys(found(rows, sizes), 0.0)
    for predicted, relevant in rows:
        items = [item for triple in predicted for item in items_of(triple, sizes) if item not in withheld][:WIDTH]
        choices = list(product(*(items_of(triple, sizes) for triple in dict.fromkeys(relevant))))
        for chosen in choices:
            calculator = MetricsCalculator(sum(sizes))
            calculator.add_batch([items], [list(chosen)])
            for name, value in calculator.compute(CUTS).items():
                sums[name] += value / len(choices) / len(rows)
    return sums


@given(DISTINCT_ROWS, SIZES)
@settings(max_examples=25, deadline=None)
def test_values_are_the_means_over_the_items_that_may_be_meant(rows, sizes):
    sizes[0] = 2
    rows = [(predicted, relevant[:3]) for predicted, relevant in rows[:3]]
    values, wanted = found(rows, sizes), expected(rows, sizes)
    for name, value in values.items():
        if not name.startswith(("id_", "coverage", "gini")):
            assert value == pytest.approx(wanted[name], abs=1e-6), name


@given(DISTINCT_ROWS, SIZES)
@settings(max_examples=25, deadline=None)
def test_exposure_is_that_of_items_and_the_old_values_have_their_own_names(rows, sizes):
    rows[0] = (rows[0][0] or [CATALOGUE[0]], rows[0][1])
    values = found(rows, sizes)
    items = [[item for triple in predicted for item in items_of(triple, sizes)] for predicted, _ in rows]
    of_items, of_ids = MetricsCalculator(sum(sizes)), MetricsCalculator(len(CATALOGUE))
    of_items.add_batch(items, items_relevant := [[items_of(t, sizes)[0] for t in relevant] for _, relevant in rows])
    of_ids.add_batch([predicted for predicted, _ in rows], [relevant for _, relevant in rows])
    assert items_relevant
    exposure, ids = of_items.compute(CUTS), of_ids.compute(CUTS)
    for k in CUTS:
        for name in ("coverage", "gini"):
            assert values[f"{name}@{k}"] == pytest.approx(exposure[f"{name}@{k}"], abs=1e-6)
        for name in ("recall", "ndcg", "hit_rate"):
            assert values[f"{ID_METRICS[name]}@{k}"] == pytest.approx(ids[f"{name}@{k}"], abs=1e-6)
    assert values["id_mrr"] == pytest.approx(ids["mrr"], abs=1e-6)


@given(DISTINCT_ROWS, SIZES, st.data())
@settings(max_examples=40, deadline=None)
def test_known_targets_are_ranked_where_the_list_of_items_has_them(rows, sizes, data):
    rows[0] = (rows[0][0] or [CATALOGUE[0]], rows[0][1])
    members, calculator = torch.full((len(rows), 6), -1), MetricsCalculator(sum(sizes))
    for row, (predicted, relevant) in enumerate(rows):
        chosen = [data.draw(st.sampled_from(items_of(triple, sizes))) for triple in relevant]
        for place, (item, triple) in enumerate(zip(chosen, relevant, strict=True)):
            members[row, place] = items_of(triple, sizes).index(item)
        calculator.add_batch([[item for triple in predicted for item in items_of(triple, sizes)][:WIDTH]], [chosen])
    wanted = calculator.compute(CUTS)
    for name, value in found(rows, sizes, members).items():
        if not name.startswith("id_"):
            assert value == pytest.approx(wanted[name], abs=1e-6), name


def withhold(rows, sizes, data):
    """Draws items to withhold, bool by item; the rows without the triples of which none is left; and those items."""
    items = [item for triple in CATALOGUE for item in items_of(triple, sizes)]
    gone = data.draw(st.lists(st.booleans(), min_size=len(items), max_size=len(items)))
    gone[0] = False
    withheld = {item for item, is_gone in zip(items, gone, strict=True) if is_gone}
    left = [
        ([triple for triple in predicted if not withheld.issuperset(items_of(triple, sizes))], relevant)
        for predicted, relevant in rows
    ]
    return np.array(gone), left, withheld


@given(DISTINCT_ROWS, SIZES, st.data())
@settings(max_examples=12, deadline=None)
def test_items_that_are_withheld_are_in_no_list_and_never_found(rows, sizes, data):
    sizes[0] = 2
    rows = [(predicted, relevant[:3]) for predicted, relevant in rows[:3]]
    gone, left, withheld = withhold(rows, sizes, data)
    values, wanted = found(left, sizes, withheld=gone), expected(left, sizes, withheld)
    for name, value in values.items():
        if not name.startswith(("id_", "coverage", "gini")):
            assert value == pytest.approx(wanted[name], abs=1e-6), name


@given(DISTINCT_ROWS, st.one_of(SIZES, st.just([1] * len(CATALOGUE))), st.data())
@settings(max_examples=20, deadline=None)
def test_known_targets_and_exposure_are_those_of_the_items_that_are_left(rows, sizes, data):
    gone, left, withheld = withhold(rows, sizes, data)
    left[0] = ([CATALOGUE[0]], left[0][1])
    members, calculator = torch.full((len(rows), 6), -1), MetricsCalculator(int((~gone).sum()))
    for row, (predicted, relevant) in enumerate(left):
        chosen = [data.draw(st.sampled_from(items_of(triple, sizes))) for triple in relevant]
        for place, (item, triple) in enumerate(zip(chosen, relevant, strict=True)):
            members[row, place] = items_of(triple, sizes).index(item)
        items = [item for triple in predicted for item in items_of(triple, sizes) if item not in withheld]
        calculator.add_batch([items[:WIDTH]], [chosen])
    wanted = calculator.compute(CUTS)
    for name, value in found(left, sizes, members, gone).items():
        if not name.startswith("id_"):
            assert value == pytest.approx(wanted[name], abs=1e-6), name
