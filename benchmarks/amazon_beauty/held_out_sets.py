"""Data sets made of another one, for which no setting is chosen: what is found on the whole has to hold on them too.

    users     a random half of the users
    earlier   all users without their last two items, so that the data end where the whole one's validation begins
    skin_care the items of one category

Users and items with fewer than CORE interactions are removed until there are none; of `earlier`, users need three, so
that one item is left to train on. Items are numbered anew.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

CORE, SHORTEST = 5, 3
CATEGORY = "Skin Care"
SEED = 2014
Sequences = dict[str, list[int]]


def random_half(sequences: Sequences, items: dict[int, list[str]]) -> Sequences:
    users = list(sequences)
    kept = np.random.Generator(np.random.PCG64(SEED)).permutation(len(users))[: len(users) // 2]
    return k_core({users[number]: sequences[users[number]] for number in sorted(kept.tolist())})


def without_last_two(sequences: Sequences, items: dict[int, list[str]]) -> Sequences:
    cut = {user: sequence[:-2] for user, sequence in sequences.items()}
    return {user: sequence for user, sequence in cut.items() if len(sequence) >= SHORTEST}


def one_category(sequences: Sequences, items: dict[int, list[str]]) -> Sequences:
    within = {number for number, fields in items.items() if CATEGORY in fields[-1].split("|")}
    return k_core({user: [item for item in sequence if item in within] for user, sequence in sequences.items()})


SETS: dict[str, Callable[[Sequences, dict[int, list[str]]], Sequences]] = {
    "users": random_half,
    "earlier": without_last_two,
    "skin_care": one_category,
}


def k_core(sequences: Sequences) -> Sequences:
    """Removes users and items with fewer than CORE interactions, until there are none."""
    while True:
        counts = Counter(item for sequence in sequences.values() for item in sequence)
        kept = {user: [item for item in items if counts[item] >= CORE] for user, items in sequences.items()}
        kept = {user: items for user, items in kept.items() if len(items) >= CORE}
        if kept == sequences:
            return kept
        sequences = kept


def write_set(name: str, data: Path, folder: Path) -> None:
    """Writes `sequences.txt` and `items.tsv` of the set `name` into a folder, from those of `data`."""
    lines = (line.split() for line in (data / "sequences.txt").read_text("utf-8").splitlines())
    sequences = {user: [int(item) for item in items] for user, *items in lines}
    header, *rows = (data / "items.tsv").read_text("utf-8").splitlines()
    items = {int(row.partition("\t")[0]): row.split("\t") for row in rows}
    chosen = SETS[name](sequences, items)
    used = sorted({item for sequence in chosen.values() for item in sequence})
    number = {item: at for at, item in enumerate(used, start=1)}
    folder.mkdir(parents=True, exist_ok=True)
    texts = [f"{number[item]}\t" + "\t".join(items[item][1:]) for item in used]
    (folder / "items.tsv").write_text("\n".join([header, *texts]) + "\n", "utf-8")
    users = [f"{user} {' '.join(str(number[item]) for item in sequence)}" for user, sequence in chosen.items()]
    (folder / "sequences.txt").write_text("\n".join(users) + "\n", "utf-8")
