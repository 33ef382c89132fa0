"""Rows of customers whose actions and times matter, and the scores to compare a model with."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ugt_composer.data.history import SemanticId, decoder_lists, encoder_lists
from ugt_composer.demo import bounds
from ugt_composer.demo.signals import Events, SignalProcess
from ugt_composer.importing.popularity import popularity
from ugt_composer.jsonl.schema import DECODER_TIMES, ENCODER_ACTIONS, ENCODER_TIMES, USER

SHORTEST, LONGEST = 4, 15  # items in a history


def draw_lengths(rng: np.random.Generator, customers: int, cuts: int) -> np.ndarray:
    """Int (N, cuts): where each customer's events are cut, at different places in order: lengths of histories."""
    places = rng.permuted(np.tile(np.arange(SHORTEST, LONGEST + 1), (customers, 1)), axis=1)
    return np.sort(places[:, :cuts], axis=1)


def signal_rows(prefix: str, ids: list[SemanticId], events: Events, lengths: np.ndarray) -> Iterator[dict[str, Any]]:
    """A recommend row for each length, int (N, cuts): the events before it, and the item after them as the target.

    The time of the prediction is the target's own.
    """
    columns = (column.tolist() for column in (events.items, events.actions, events.times, lengths))
    for number, (items, actions, times, cuts) in enumerate(zip(*columns, strict=True)):
        for cut in cuts:
            yield {
                USER: f"{prefix}-{number:06d}",
                **encoder_lists([ids[item] for item in items[:cut]]),
                ENCODER_ACTIONS: [0, *(1 + action for action in actions[:cut])],
                ENCODER_TIMES: [times[0], *times[:cut]],
                **decoder_lists([ids[items[cut]]]),
                DECODER_TIMES: [times[cut]],
            }


def signal_facts(process: SignalProcess, trained: np.ndarray, held_out: Events, lengths: np.ndarray) -> dict[str, Any]:
    """Scores of popularity and of the best possible predictions: without signals, with either, and with both.

    Args:
        trained: int (P,) items of the training customers.
        lengths: int (N, 1), of the histories of the customers held out.
    """
    rows, last = np.arange(len(lengths)), lengths[:, 0] - 1
    items, actions, gaps = (column[rows, last] for column in (held_out.items, held_out.actions, held_out.gaps))
    targets, law = held_out.items[rows, last + 1], process.next_law(items, actions, gaps)
    best = {
        "ceiling_without_signals": process.predictive(items),
        "ceiling_with_actions": process.predictive(items, actions=actions),
        "ceiling_with_times": process.predictive(items, gaps=gaps),
        "ceiling_with_signals": law,
    }
    counts = [np.bincount(numbers, minlength=len(process.shelf)) for numbers in (trained, targets)]
    return {
        "popularity": popularity(*counts),
        **{name: bounds.expected(bounds.top_items(prediction), law) for name, prediction in best.items()},
    }
