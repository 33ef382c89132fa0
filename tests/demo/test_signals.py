import numpy as np
import pytest

from ugt_composer.demo.bounds import expected, top_items
from ugt_composer.demo.signals import ACTIONS, DAY, GAPS, Events, Knobs, SignalProcess, make_signal_process
from ugt_composer.demo.taxonomy import Taxonomy, shop

SEED = 3


def small() -> SignalProcess:
    """Six shelves of two items."""
    taxonomy = Taxonomy(np.zeros(6, int), np.repeat(np.arange(6), 2), np.zeros(12, int), ("",) * 12)
    return make_signal_process(np.random.default_rng(SEED), taxonomy, Knobs(noise=0.2))


def events(process: SignalProcess, count: int, length: int) -> Events:
    return process.draw_events(np.random.default_rng(SEED), count, length)


def test_laws_are_probabilities():
    process, last = small(), np.arange(12)
    for law in (process.next_law(last, 1, 2), process.predictive(last), process.predictive(last, last % 2, last % 3)):
        assert law.min() > 0
        assert law.sum(axis=1) == pytest.approx(1)


def test_drawn_items_follow_the_law():
    process = small()
    drawn = events(process, 200_000, 2)
    for action in range(len(ACTIONS)):
        for gap in range(len(GAPS)):
            chosen = (drawn.items[:, 0] == 3) & (drawn.actions[:, 0] == action) & (drawn.gaps[:, 0] == gap)
            frequency = np.bincount(drawn.items[chosen, 1], minlength=12) / chosen.sum()
            assert frequency == pytest.approx(process.next_law(np.array([3]), action, gap)[0], abs=0.04)


def test_predictions_are_the_frequencies_for_who_sees_only_a_part():
    """Counted over what was drawn: given the last two items, and nothing, the action or the time of the last one."""
    process = small()
    drawn = events(process, 400_000, 3)
    pair = (drawn.items[:, 0] == 3) & (drawn.items[:, 1] == np.argmax(process.next_law(np.array([3]), 0, 0)))
    last = drawn.items[pair][:1, 1]
    for chosen, known in (
        (pair, {}),
        (pair & (drawn.actions[:, 1] == 1), {"actions": np.array([1])}),
        (pair & (drawn.gaps[:, 1] == 2), {"gaps": np.array([2])}),
    ):
        frequency = np.bincount(drawn.items[chosen, 2], minlength=12) / chosen.sum()
        assert frequency == pytest.approx(process.predictive(last, **known)[0], abs=0.03)


def test_seeing_everything_is_the_law_itself():
    process = small()
    drawn = events(process, 50, 4)
    last, actions, gaps = drawn.items[:, 2], drawn.actions[:, 2], drawn.gaps[:, 2]
    assert process.predictive(last, actions, gaps) == pytest.approx(process.next_law(last, actions, gaps))


def test_times_say_which_kind_of_gap_it_was():
    drawn = events(small(), 500, 10)
    seconds = np.diff(drawn.times, axis=1)
    for kind, (shortest, longest) in enumerate(GAPS):
        of_kind = seconds[drawn.gaps[:, :-1] == kind]
        assert shortest - 1 <= of_kind.min() <= of_kind.max() <= longest
    assert (drawn.gaps[:, :-1] == 0).tolist() == (seconds < DAY).tolist()


def test_each_signal_raises_the_ceiling_and_both_together_most():
    process = make_signal_process(np.random.default_rng(SEED), shop(), Knobs())
    drawn = events(process, 500, 2)
    last, actions, gaps = drawn.items[:, 0], drawn.actions[:, 0], drawn.gaps[:, 0]
    law = process.next_law(last, actions, gaps)
    known = {
        "none": {},
        "actions": {"actions": actions},
        "times": {"gaps": gaps},
        "both": {"actions": actions, "gaps": gaps},
    }
    recall = {
        name: expected(top_items(process.predictive(last, **seen)), law)["recall@10"] for name, seen in known.items()
    }
    assert recall["none"] < 0.35
    assert recall["both"] > 0.9
    assert recall["none"] + 0.1 < recall["actions"] < recall["both"] - 0.1
    assert recall["none"] + 0.1 < recall["times"] < recall["both"] - 0.1
