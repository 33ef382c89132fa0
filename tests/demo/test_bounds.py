import math
from itertools import combinations

import numpy as np
import pytest

from ugt_composer.demo import bounds
from ugt_composer.demo.process import Knobs, Offers, make_process
from ugt_composer.demo.taxonomy import shop
from ugt_composer.importing.popularity import popularity

ROWS, LENGTH = 3000, 12


def rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.fixture(scope="module")
def world():
    """The demo's distribution, ROWS customers drawn from it, and the best prediction of their next item."""
    process = make_process(rng(7), shop(), Knobs())
    types = process.draw_types(rng(1), ROWS)
    sequences = process.draw_sequences(rng(2), types, LENGTH + 1)
    histories, targets = sequences[:, :-1], sequences[:, -1]
    posterior = process.posterior(histories, np.full(ROWS, LENGTH))
    offers = process.draw_offers(rng(3), types, histories[:, -1])
    return process, types, histories, targets, posterior, process.predictive(posterior, histories[:, -1]), offers


def test_recall_and_ndcg_by_hand():
    recommended = np.array([[3, 1, 0], [2, 3, 1], [0, 1, 2]])
    found = bounds.realised(recommended, np.array([3, 1, 3]))
    assert found == {"recall@3": 0.6667, "ndcg@3": round((1 + 1 / math.log2(4)) / 3, 4)}
    law = np.array([[0.1, 0.2, 0.3, 0.4]] * 3)
    mass = [(0.4, 0.2, 0.1), (0.3, 0.4, 0.2), (0.1, 0.2, 0.3)]
    expected = bounds.expected(recommended, law)
    assert expected["recall@3"] == pytest.approx(sum(map(sum, mass)) / 3, abs=1e-4)
    discounted = sum(p / math.log2(rank + 2) for row in mass for rank, p in enumerate(row)) / 3
    assert expected["ndcg@3"] == pytest.approx(discounted, abs=1e-4)


def test_drawn_accuracies_agree_with_expected_ones(world):
    *_, targets, _, law, _ = world
    best = bounds.top_items(law)
    expected, found = bounds.expected(best, law), bounds.realised(best, targets)
    assert found["recall@10"] == pytest.approx(expected["recall@10"], abs=4 * math.sqrt(0.25 / ROWS))
    assert found["ndcg@10"] == pytest.approx(expected["ndcg@10"], abs=4 * math.sqrt(0.25 / ROWS))


def test_no_other_ranking_beats_the_ceiling(world):
    """Also on the drawn targets. Rankings: popularity, the last item only, shuffled customers' posteriors, random."""
    process, _, histories, targets, posterior, law, _ = world
    ceiling = bounds.realised(bounds.top_items(law), targets)
    last = histories[:, -1]
    prior = np.broadcast_to(process.type_weights, posterior.shape)
    laws = {
        "last item only": process.predictive(prior, last),
        "somebody else's tastes": process.predictive(posterior[::-1], last),
        "random": rng(4).random(law.shape),
    }
    others = {name: bounds.realised(bounds.top_items(other), targets) for name, other in laws.items()}
    counts = [np.bincount(items, minlength=law.shape[1]) for items in (histories.ravel(), targets)]
    others["popularity"] = popularity(*counts)
    for name, found in others.items():
        assert found["recall@10"] < ceiling["recall@10"], name
        assert found["ndcg@10"] < ceiling["ndcg@10"], name


def test_the_ceiling_and_popularity_are_where_the_demo_needs_them(world):
    _, _, histories, targets, _, law, _ = world
    counts = [np.bincount(items, minlength=law.shape[1]) for items in (histories.ravel(), targets)]
    popular = popularity(*counts)
    assert 0.45 < bounds.expected(bounds.top_items(law), law)["recall@10"] < 0.6
    assert 0.05 < popular["recall@10"] < 0.1


def test_best_pair_accuracy_equals_brute_force():
    """Sums over everything that may be chosen, and its pairs with the others."""
    probabilities = np.array([[0.2, 0.5, 0.3, 0.0], [0.6, 0.4, 0.0, 0.0]])
    shown = probabilities > 0
    right = total = 0.0
    for row in probabilities:
        items = [p for p in row if p > 0]
        for a, b in combinations(items, 2):
            total += a + b  # the pair counts when one of the two is chosen
            right += max(a, b)  # and is right when that is the likelier one
    offers = Offers(np.where(shown, np.arange(4), -1), shown)
    assert bounds.best_pair_accuracy(probabilities, offers) == pytest.approx(right / total, abs=1e-4)


def test_pair_accuracy_counts_existing_pairs_only():
    offers = Offers(np.array([[5, 6, 7], [5, 6, -1]]), np.array([[True, True, True], [True, True, False]]))
    scores = np.array([[2.0, 1.0, 3.0], [1.0, 0.0, 9.0]])
    assert bounds.pair_accuracy(scores, offers) == pytest.approx(2 / 3, abs=1e-4)


def test_clicks_tell_little_of_what_pleases_and_the_truth_much(world):
    process, types, histories, _, posterior, law, offers = world
    known = process.posterior_after_offer(posterior, histories[:, -1], offers)
    choice = bounds.choice_probabilities(process, known, offers)
    assert choice.sum(axis=1) == pytest.approx(1)
    best = bounds.best_pair_accuracy(choice, offers)
    assert 0.85 < best < 0.9
    assert bounds.pair_accuracy(choice, offers) == pytest.approx(best, abs=0.02)
    true_utility = process.utility[types[:, None], offers.items]
    assert bounds.pair_accuracy(true_utility, offers) == pytest.approx(best, abs=0.02)
    clicks = bounds.pair_accuracy(np.take_along_axis(law, offers.items, axis=1), offers)
    assert 0.55 < clicks < 0.65


def test_what_pleases_can_be_learnt_at_little_cost_in_clicks(world):
    """Tilting the click distribution towards utility within each shelf: many more pairs right, few clicks lost."""
    process, _, _, _, posterior, law, offers = world
    tilted = law * np.exp(0.1 * (posterior @ process.utility))
    tilted *= (shelf_sums(process, law) / shelf_sums(process, tilted))[:, process.shelf]
    ceiling = bounds.expected(bounds.top_items(law), law)["recall@10"]
    assert bounds.expected(bounds.top_items(tilted), law)["recall@10"] > 0.98 * ceiling
    before, after = (bounds.pair_accuracy(np.take_along_axis(s, offers.items, axis=1), offers) for s in (law, tilted))
    assert after > before + 0.1


def shelf_sums(process, law: np.ndarray) -> np.ndarray:
    """(N, V) → (N, A)."""
    return law @ (process.shelf[:, None] == np.arange(process.shelf.max() + 1))
