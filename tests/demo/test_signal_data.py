import numpy as np

from ugt_composer.data.history import decoder_lists, encoder_lists
from ugt_composer.demo import signal_data
from ugt_composer.demo.signals import Knobs, make_signal_process
from ugt_composer.demo.taxonomy import shop

TAXONOMY = shop()
IDS = TAXONOMY.semantic_ids()
PROCESS = make_signal_process(np.random.default_rng(0), TAXONOMY, Knobs())


def test_rows_hold_the_events_before_the_cut_and_the_item_after_them():
    events = PROCESS.draw_events(np.random.default_rng(1), 3, signal_data.LONGEST + 1)
    rows = list(signal_data.signal_rows("u", IDS, events, np.array([[4, 6]] * 3)))
    assert len(rows) == 6
    for number, row in enumerate(rows):
        customer, cut = divmod(number, 2)
        length = (4, 6)[cut]
        items, times = events.items[customer].tolist(), events.times[customer].tolist()
        assert row == {
            "user_id": f"u-{customer:06d}",
            **encoder_lists([IDS[item] for item in items[:length]]),
            "encoder_actions": [0, *(events.actions[customer, :length] + 1).tolist()],
            "encoder_times": [times[0], *times[:length]],
            **decoder_lists([IDS[items[length]]]),
            "decoder_times": [times[length]],
        }


def test_cuts_of_a_customer_are_different():
    lengths = signal_data.draw_lengths(np.random.default_rng(0), 500, 3)
    assert lengths.min() == signal_data.SHORTEST
    assert lengths.max() == signal_data.LONGEST
    assert (np.diff(lengths, axis=1) > 0).all()


def test_the_best_possible_scores_are_close_to_those_on_the_drawn_targets():
    """Of 4,000 targets, the standard error is at most .008."""
    events = PROCESS.draw_events(np.random.default_rng(2), 4000, signal_data.LONGEST + 1)
    lengths = signal_data.draw_lengths(np.random.default_rng(3), 4000, 1)
    facts = signal_data.signal_facts(PROCESS, events.items.ravel(), events, lengths)
    rows, last = np.arange(4000), lengths[:, 0] - 1
    targets = events.items[rows, last + 1]
    seen = {"actions": events.actions[rows, last], "gaps": events.gaps[rows, last]}
    for name, known in (("without_signals", {}), ("with_signals", seen)):
        law = PROCESS.predictive(events.items[rows, last], **known)
        best = np.argsort(-law, axis=1, kind="stable")[:, :10]
        found = (best == targets[:, None]).any(axis=1).mean()
        assert abs(found - facts[f"ceiling_{name}"]["recall@10"]) < 0.03
    assert facts["popularity"]["recall@10"] < facts["ceiling_without_signals"]["recall@10"]
