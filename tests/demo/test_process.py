"""The distribution compared with brute force in a world small enough to enumerate, and draws compared with it."""

from itertools import pairwise, product

import numpy as np
import pytest

from ugt_composer.demo.process import MAX_SHOWN, DemoProcess, Knobs, make_process
from ugt_composer.demo.taxonomy import CODEBOOK_SIZES, ITEMS_PER_SHELF, shop
from ugt_composer.vocabulary import NUM_SPECIAL_IDS

TYPES, ITEMS = 2, 6
SHELF = [0, 0, 0, 1, 1, 1]
WEIGHTS = [0.7, 0.3]
TASTE = [[0.9, 0.1], [0.2, 0.8]]
CHOICE = [[0.5, 0.3, 0.2, 0.2, 0.2, 0.6], [0.1, 0.1, 0.8, 0.4, 0.4, 0.2]]
MOVES = [[0.6, 0.4], [0.3, 0.7]]
UTILITY = [[1.0, -1.0, 0.5, 0.0, 2.0, -0.5], [-1.0, 1.0, 0.0, 1.5, 0.0, 0.5]]
STAY = 0.4


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.fixture(scope="module")
def tiny() -> DemoProcess:
    return DemoProcess(np.array(SHELF), *map(np.array, (WEIGHTS, TASTE, CHOICE, MOVES, UTILITY)), stay=STAY)


@pytest.fixture(scope="module")
def full() -> DemoProcess:
    return make_process(rng(7), shop(), Knobs())


def first(z: int, i: int) -> float:
    return TASTE[z][SHELF[i]] * CHOICE[z][i]


def following(z: int, j: int, i: int) -> float:
    """P(next = i | z, last = j), from the formula at the top of process.py."""

    def weight(item: int) -> float:
        shelf = SHELF[item]
        return (STAY * MOVES[SHELF[j]][shelf] + (1 - STAY) * TASTE[z][shelf]) * CHOICE[z][item]

    return 0.0 if i == j else weight(i) / sum(weight(item) for item in range(ITEMS) if item != j)


def sequence_probability(z: int, items: tuple[int, ...]) -> float:
    steps = [following(z, a, b) for a, b in pairwise(items)]
    return WEIGHTS[z] * first(z, items[0]) * float(np.prod(steps))


def test_every_law_sums_to_one(tiny, full):
    for process in (tiny, full):
        items = np.arange(len(process.shelf))
        assert process.first_law.sum(axis=1) == pytest.approx(1)
        for z in range(len(process.type_weights)):
            law = process.next_law(z, items)
            assert law.sum(axis=1) == pytest.approx(1)
            assert not law[items, items].any(), "no item follows itself"


def test_next_law_is_the_stated_formula(tiny):
    for z in range(TYPES):
        stated = [[following(z, j, i) for i in range(ITEMS)] for j in range(ITEMS)]
        np.testing.assert_allclose(tiny.next_law(z, np.arange(ITEMS)), stated, rtol=1e-12)
        for item in range(ITEMS):
            probability = tiny.next_probability(np.arange(ITEMS), np.full(ITEMS, item))[:, z]
            np.testing.assert_allclose(probability, np.array(stated)[:, item], rtol=1e-12)


def test_prediction_equals_brute_force_over_all_histories(tiny):
    """P(next | history) = P(history and next) / P(history), each summed over the types by hand."""
    histories = [items for n in (1, 2, 3) for items in product(range(ITEMS), repeat=n)]
    histories = [items for items in histories if all(a != b for a, b in pairwise(items))]
    lengths = np.array([len(items) for items in histories])
    padded = np.array([items + (0,) * (4 - len(items)) for items in histories])
    last = np.array([items[-1] for items in histories])
    predicted = tiny.predictive(tiny.posterior(padded, lengths), last)
    for row, items in zip(predicted, histories, strict=True):
        seen = sum(sequence_probability(z, items) for z in range(TYPES))
        for item in range(ITEMS):
            both = sum(sequence_probability(z, (*items, item)) for z in range(TYPES))
            assert row[item] == pytest.approx(both / seen, abs=1e-12)


def test_drawn_sequences_follow_the_law(tiny):
    """Chi-square of first items and of each (type, last) → next table; 4 standard deviations are accepted."""
    count = 40_000
    types = tiny.draw_types(rng(), count)
    sequences = tiny.draw_sequences(rng(1), types, 3)
    check_counts(np.bincount(types, minlength=TYPES), WEIGHTS)
    for z in range(TYPES):
        mine = sequences[types == z]
        check_counts(np.bincount(mine[:, 0], minlength=ITEMS), [first(z, i) for i in range(ITEMS)])
        for j in range(ITEMS):
            after = np.concatenate([mine[mine[:, t] == j, t + 1] for t in (0, 1)])
            check_counts(np.bincount(after, minlength=ITEMS), [following(z, j, i) for i in range(ITEMS)])


def check_counts(found: np.ndarray, law: list[float]) -> None:
    possible = np.array(law) > 0
    assert not found[~possible].any()
    expected = found.sum() * np.array(law)[possible]
    statistic = ((found[possible] - expected) ** 2 / expected).sum()
    freedom = possible.sum() - 1
    assert statistic < freedom + 4 * np.sqrt(2 * freedom) + 4


def test_full_world_moves_between_shelves_as_stated(full):
    types = full.draw_types(rng(), 4000)
    sequences = full.draw_sequences(rng(1), types, 12)
    shelves = full.shelf[sequences]
    stated = np.mean(
        [(full.next_law(types, sequences[:, t]) * (full.shelf == shelves[:, t, None])).sum(axis=1) for t in range(11)]
    )
    assert (shelves[:, 1:] == shelves[:, :-1]).mean() == pytest.approx(stated, abs=0.01)


def test_offers_are_of_one_shelf_without_the_last_item(full):
    count = 3000
    types = full.draw_types(rng(), count)
    last = full.draw_sequences(rng(1), types, 2)[:, 1]
    offers = full.draw_offers(rng(2), types, last)
    assert set(offers.shown.sum(axis=1)) == {2, 3, 4}
    for row, shown, taken in zip(offers.items, offers.shown, last, strict=True):
        items = row[shown]
        assert len(set(items)) == len(items)
        assert taken not in items
        assert len(set(full.shelf[items])) == 1
        assert (row[~shown] == -1).all()


def test_what_is_chosen_follows_bradley_terry(tiny):
    count = 60_000
    types = tiny.draw_types(rng(), count)
    last = tiny.draw_sequences(rng(1), types, 1)[:, 0]
    offers = tiny.draw_offers(rng(2), types, last)
    chosen, rejected = offers.items[:, 0], offers.items[:, 1]
    for z, i, j in [(0, 0, 1), (0, 4, 3), (1, 3, 5), (1, 0, 2)]:
        met = (types == z) & np.isin(last, np.flatnonzero(np.array(SHELF) != SHELF[i]))
        met &= (np.minimum(chosen, rejected) == min(i, j)) & (np.maximum(chosen, rejected) == max(i, j))
        met &= offers.shown.sum(axis=1) == 2
        stated = 1 / (1 + np.exp(UTILITY[z][j] - UTILITY[z][i]))
        deviation = np.sqrt(stated * (1 - stated) / met.sum())
        assert met.sum() > 100
        assert (chosen[met] == i).mean() == pytest.approx(stated, abs=4 * deviation)


def test_an_offer_tells_of_the_type_what_bayes_says(tiny):
    types = tiny.draw_types(rng(), 50)
    last = tiny.draw_sequences(rng(1), types, 1)[:, 0]
    offers = tiny.draw_offers(rng(2), types, last)
    prior = tiny.posterior(last[:, None], np.ones(50, dtype=int))
    after = tiny.posterior_after_offer(prior, last, offers)
    for row in range(50):
        shelf = SHELF[offers.items[row, 0]]
        on_shelf = [i for i in range(ITEMS) if SHELF[i] == shelf]
        weights = [prior[row, z] * sum(following(z, last[row], i) for i in on_shelf) for z in range(TYPES)]
        assert after[row] == pytest.approx(np.array(weights) / sum(weights))


def test_the_same_seed_makes_the_same_law_and_another_seed_another(full):
    again, other = make_process(rng(7), shop(), Knobs()), make_process(rng(8), shop(), Knobs())
    for name in ("taste", "choice", "moves", "utility"):
        np.testing.assert_array_equal(getattr(full, name), getattr(again, name))
        assert not np.array_equal(getattr(full, name), getattr(other, name))


def test_the_shop_fits_its_codebooks_and_forms_a_tree():
    taxonomy = shop()
    ids = taxonomy.semantic_ids()
    levels = list(zip(*ids, strict=True))
    for level, size in zip(levels, CODEBOOK_SIZES, strict=True):
        assert min(level) >= NUM_SPECIAL_IDS
        assert max(level) < size
    assert len(ids) == len(set(levels[2])) == len(set(taxonomy.names)) == 528
    assert len({(l1, l2) for l1, l2, _ in ids}) == len(set(levels[1])) == 66
    assert np.bincount(taxonomy.shelf).tolist() == [ITEMS_PER_SHELF] * 66
    assert ITEMS_PER_SHELF > MAX_SHOWN, "a shelf without the last item can fill an offer"
