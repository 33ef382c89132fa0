"""The demo's files: histories, preferences and a catalogue, drawn from a distribution that is known exactly."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ugt_composer.data.history import SemanticId, decoder_lists, encoder_lists
from ugt_composer.demo import bounds, signal_data
from ugt_composer.demo.process import DemoProcess, Knobs, Offers, make_process
from ugt_composer.demo.signals import ACTIONS, make_signal_process
from ugt_composer.demo.signals import Knobs as SignalKnobs
from ugt_composer.demo.taxonomy import CODEBOOK_SIZES, shop
from ugt_composer.importing.popularity import popularity
from ugt_composer.jsonl.schema import ACTIONS_NAME
from ugt_composer.terminal import ProgressBar

SHORTEST, LONGEST = 4, 30  # items in a history
BLOCK = 4096  # customers drawn at once, to limit memory
TARGETS = 5  # maximum number of items to predict in a training row
JSONL = ("catalogue.jsonl", "train.jsonl", "eval.jsonl", "preference_train.jsonl", "preference_eval.jsonl")
FACTS = "facts.json"
SHOP, SIGNALS = "shop", "signals"  # laws
FILES = {SHOP: (*JSONL, FACTS), SIGNALS: (*JSONL[:3], ACTIONS_NAME, FACTS)}


@dataclass(frozen=True)
class Customers:
    """N customers.

    Attributes:
        types: int (N,), hidden: not written to any file.
        sequences: int (N, LONGEST + 1), the first `lengths` (N,) items are the history, the next one the target.
        offers: the items shown after `offer_lengths` (N,) items, the chosen one first.
    """

    types: np.ndarray
    sequences: np.ndarray
    lengths: np.ndarray
    offer_lengths: np.ndarray
    offers: Offers


def draw_customers(rng: np.random.Generator, process: DemoProcess, count: int, offer_early: bool) -> Customers:
    """Draws `count` customers; the offer is at the end of the history, or anywhere in it with `offer_early`."""
    blocks = []
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        types = process.draw_types(rng, size)
        sequences = process.draw_sequences(rng, types, LONGEST + 1)
        lengths = rng.integers(SHORTEST, LONGEST + 1, size)
        offer_lengths = rng.integers(SHORTEST, lengths + 1) if offer_early else lengths
        offers = process.draw_offers(rng, types, sequences[np.arange(size), offer_lengths - 1])
        blocks.append((types, sequences, lengths, offer_lengths, offers.items, offers.shown))
    types, sequences, lengths, offer_lengths, items, shown = map(np.concatenate, zip(*blocks, strict=True))
    return Customers(types, sequences, lengths, offer_lengths, Offers(items, shown))


def draw_cuts(rng: np.random.Generator, customers: Customers, cuts: int) -> list[list[int]]:
    """Where each customer's sequence is cut: at most `cuts` history lengths, in order."""
    order = rng.random((len(customers.lengths), LONGEST - SHORTEST + 1))
    drawn = []
    for keys, length in zip(order, customers.lengths.tolist(), strict=True):
        possible = length - SHORTEST + 1
        drawn.append(sorted((np.argsort(keys[:possible])[:cuts] + SHORTEST).tolist()))
    return drawn


def train_rows(ids: list[SemanticId], customers: Customers, cuts: list[list[int]]) -> Iterator[dict[str, Any]]:
    """One row per cut: the history up to it, and at most TARGETS of the next items, nearest first."""
    for number, (sequence, length) in enumerate(zip(customers.sequences, customers.lengths.tolist(), strict=True)):
        items = [ids[i] for i in sequence[: length + 1].tolist()]
        for cut in cuts[number]:
            yield recommend_row(f"train-{number:06d}", items[:cut], items[cut : cut + TARGETS])


def eval_rows(ids: list[SemanticId], customers: Customers) -> Iterator[dict[str, Any]]:
    for number, (sequence, length) in enumerate(zip(customers.sequences, customers.lengths.tolist(), strict=True)):
        items = [ids[i] for i in sequence[: length + 1].tolist()]
        yield recommend_row(f"eval-{number:06d}", items[:-1], items[-1:])


def recommend_row(user_id: str, history: list[SemanticId], targets: list[SemanticId]) -> dict[str, Any]:
    return {"user_id": user_id, **encoder_lists(history), **decoder_lists(targets)}


def preference_rows(
    prefix: str, ids: list[SemanticId], process: DemoProcess, customers: Customers
) -> Iterator[dict[str, Any]]:
    """One row per customer. A single rejected item is an object, several are a list."""
    scores = preference_scores(process, customers).tolist()
    columns = zip(customers.sequences, customers.offer_lengths.tolist(), customers.offers.items.tolist(), strict=True)
    for number, (sequence, length, items) in enumerate(columns):
        chosen, *rejected = (item_object(ids[i]) for i in items if i >= 0)
        yield {
            "user_id": f"{prefix}-{number:06d}",
            "user_sequence": encoder_lists([ids[i] for i in sequence[:length].tolist()]),
            "chosen_item": chosen,
            **({"rejected_item": rejected[0]} if len(rejected) == 1 else {"rejected_items": rejected}),
            "preference_score": scores[number],
        }


def item_object(triple: SemanticId) -> dict[str, int]:
    return dict(zip(("l1_id", "l2_id", "l3_id"), triple, strict=True))


def preference_scores(process: DemoProcess, customers: Customers) -> np.ndarray:
    """(N,) sigmoid of the chosen item's utility minus the mean utility of the rejected ones, in .0001 to 1."""
    items, shown = customers.offers.items, customers.offers.shown
    utility = np.where(shown, process.utility[customers.types[:, None], items], 0)
    rejected = utility[:, 1:].sum(axis=1) / shown[:, 1:].sum(axis=1)
    return np.round(1 / (1 + np.exp(rejected - utility[:, 0])), 4).clip(0.0001, 1)


def catalogue_rows(ids: list[SemanticId], names: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, (triple, name) in enumerate(zip(ids, names, strict=True), start=1):
        yield {"item_id": f"item-{number:04d}", **item_object(triple), "name": name}


def facts(process: DemoProcess, training: Customers, held_out: Customers) -> dict[str, Any]:
    """The scores to compare a model with, on the rows of the eval files."""
    sequences, lengths, offers = held_out.sequences, held_out.lengths, held_out.offers
    rows = np.arange(len(lengths))
    last, targets = sequences[rows, lengths - 1], sequences[rows, lengths]
    posterior = process.posterior(sequences, lengths)
    probabilities = process.predictive(posterior, last)
    best = bounds.top_items(probabilities)
    trained_on = training.sequences[np.arange(LONGEST + 1) <= training.lengths[:, None]]
    after_offer = process.posterior_after_offer(posterior, last, offers)
    choice = bounds.choice_probabilities(process, after_offer, offers)
    counts = [np.bincount(items.ravel(), minlength=probabilities.shape[1]) for items in (trained_on, targets)]
    return {
        "popularity": popularity(*counts),
        "ceiling": bounds.expected(best, probabilities),
        "ceiling_realised": bounds.realised(best, targets),
        "preference_ceiling": bounds.best_pair_accuracy(choice, offers),
        "preference_ceiling_realised": bounds.pair_accuracy(choice, offers),
        "preference_of_clicks": bounds.pair_accuracy(np.take_along_axis(probabilities, offers.items, axis=1), offers),
    }


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]], total: int) -> int:
    """Writes one object per line; returns their number, which `total` predicts."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file, ProgressBar(path.name, total, "rows") as bar:
        for row in rows:
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
            bar.update()
            count += 1
    return count


def make_demo_data(out: Path, users: int, eval_users: int, cuts: int, seed: int) -> dict[str, Any]:
    """Writes all files into the folder `out`; returns the content of facts.json."""
    rng = np.random.Generator(np.random.PCG64(seed))
    taxonomy, knobs = shop(), Knobs()
    process, ids = make_process(rng, taxonomy, knobs), taxonomy.semantic_ids()
    training = draw_customers(rng, process, users, offer_early=True)
    held_out = draw_customers(rng, process, eval_users, offer_early=False)
    train_cuts = draw_cuts(rng, training, cuts)
    rows = (
        (catalogue_rows(ids, taxonomy.names), len(ids)),
        (train_rows(ids, training, train_cuts), sum(map(len, train_cuts))),
        (eval_rows(ids, held_out), eval_users),
        (preference_rows("train", ids, process, training), users),
        (preference_rows("eval", ids, process, held_out), eval_users),
    )
    report = {
        "seed": seed,
        "items": len(ids),
        "codebook_sizes": list(CODEBOOK_SIZES),
        "rows": {name: write_jsonl(out / name, *of) for name, of in zip(JSONL, rows, strict=True)},
        **facts(process, training, held_out),
        "law": asdict(knobs),
    }
    (out / FACTS).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def make_signal_data(out: Path, users: int, eval_users: int, cuts: int, seed: int) -> dict[str, Any]:
    """Writes all files of the law SIGNALS into the folder `out`; returns the content of facts.json."""
    rng = np.random.Generator(np.random.PCG64(seed))
    taxonomy, knobs = shop(), SignalKnobs()
    process, ids = make_signal_process(rng, taxonomy, knobs), taxonomy.semantic_ids()
    training, held_out = (process.draw_events(rng, count, signal_data.LONGEST + 1) for count in (users, eval_users))
    lengths, eval_lengths = signal_data.draw_lengths(rng, users, cuts), signal_data.draw_lengths(rng, eval_users, 1)
    rows = (
        (catalogue_rows(ids, taxonomy.names), len(ids)),
        (signal_data.signal_rows("train", ids, training, lengths), lengths.size),
        (signal_data.signal_rows("eval", ids, held_out, eval_lengths), eval_users),
    )
    report = {
        "seed": seed,
        "items": len(ids),
        "codebook_sizes": list(CODEBOOK_SIZES),
        "rows": {name: write_jsonl(out / name, *of) for name, of in zip(JSONL, rows, strict=False)},
        **signal_data.signal_facts(process, training.items.ravel(), held_out, eval_lengths),
        "law": asdict(knobs),
    }
    (out / ACTIONS_NAME).write_text(json.dumps(ACTIONS) + "\n", encoding="utf-8")
    (out / FACTS).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report
