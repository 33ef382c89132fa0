"""Converts Amazon Beauty (5-core, 2014) to JSON Lines: an example of bringing your own data.

Needs two files in --data:
    sequences.txt   one line per user: user_id item_id item_id …, oldest first
    items.tsv       a header, then item_id, asin, title, attributes separated by "|" (mostly a brand, then categories)

Leave-one-out split: a user's last item is for testing, the one before it for evaluation, the others for training.

    catalogue.jsonl   the items, with their titles as names
    train.jsonl       every prefix of the training part, with the next items as targets (--cuts limits them)
    eval.jsonl        the training part, with the item before the last as target
    test.jsonl        all but the last item, with the last as target
    facts.json        codebook sizes, counts, and the scores of recommending the most popular items

Semantic IDs: L1 is an item's first two categories; L2 is L1 with the maker (the brand, or the title's first word)
where at least three items share both, else the whole category path; L3 is the item itself.

Example:
    python convert/amazon_beauty_to_jsonl.py --data ../shared/data/amazon_beauty --out data/beauty
"""

import argparse
import html
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ugt_composer.job.cpus import share_cpus

if __name__ == "__main__":
    share_cpus()  # before NumPy and scikit-learn are imported, which start their threads

import numpy as np

from ugt_composer import __version__
from ugt_composer.data.history import SemanticId, decoder_lists, encoder_lists
from ugt_composer.errors import UserError, exit_on_user_error
from ugt_composer.seeds import seed_of
from ugt_composer.storage.output_folder import new_folder
from ugt_composer.vocabulary import NUM_SPECIAL_IDS

HISTORY = 20  # most recent items kept in a history
TARGETS = 5  # maximum number of items to predict in a training row
SHORTEST = 4  # minimum items per user: two for training, one for evaluation, one for testing
FILES = ("catalogue.jsonl", "train.jsonl", "eval.jsonl", "test.jsonl", "facts.json")
DEPARTMENTS = {"Skin Care", "Hair Care", "Makeup", "Tools & Accessories", "Bath & Body", "Fragrance"}
SHARED_BY = 3  # items that must share L1 and maker to get an L2 code of their own


class Item(NamedTuple):
    title: str
    maker: str
    categories: tuple[str, ...]


def read_items(path: Path) -> dict[int, Item]:
    """Items by number. The attributes before the first department are the brand."""
    items: dict[int, Item] = {}
    for number, line in lines_of(path):
        if number == 1:
            continue  # the header
        fields = line.split("\t")
        if len(fields) != 4:
            raise UserError(f"{path}, line {number}: {len(fields)} columns found, 4 expected")
        title, attributes = html.unescape(fields[2]).strip(), html.unescape(fields[3]).split("|")
        start = next((at for at, name in enumerate(attributes) if name in DEPARTMENTS), None)
        if start is None:
            raise UserError(f"{path}, line {number}: {fields[3]!r} names none of {sorted(DEPARTMENTS)}")
        brand = "" if attributes[0] == "Unknown" else " ".join(attributes[:start])
        maker = (brand or title.partition(" ")[0]).lower()
        item = item_number(fields[0], path, number)
        if item in items:
            raise UserError(f"{path}, line {number}: item {item} again; one line per item expected")
        items[item] = Item(title, maker, tuple(attributes[start:]))
    if not items:
        raise UserError(f"{path} holds no item; expected a header and one line per item")
    return items


def read_sequences(path: Path, items: dict[int, Item]) -> dict[str, list[int]]:
    """Each user's item numbers, oldest first."""
    sequences: dict[str, list[int]] = {}
    for number, line in lines_of(path):
        user, *names = line.split()
        sequence = [item_number(name, path, number) for name in names]
        unknown = next((item for item in sequence if item not in items), None)
        if unknown is not None:
            raise UserError(f"{path}, line {number}: item {unknown} is not in items.tsv")
        if len(sequence) < SHORTEST:
            raise UserError(f"{path}, line {number}: {len(sequence)} items found, at least {SHORTEST} expected")
        if user in sequences:
            raise UserError(f"{path}, line {number}: user {user} again; one line per user expected")
        sequences[user] = sequence
    if not sequences:
        raise UserError(f"{path} holds no user; expected one line per user")
    return sequences


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; --data is the folder that holds it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None


def item_number(text: str, path: Path, line: int) -> int:
    if not text.isdecimal():
        raise UserError(f"{path}, line {line}: {text!r} found, an item number expected")
    return int(text)


def semantic_ids(items: dict[int, Item]) -> dict[int, SemanticId]:
    """Semantic IDs of the items, by the rule in this file's docstring."""
    department = {number: " > ".join(item.categories[:2]) for number, item in items.items()}
    by_maker = {number: f"{department[number]} by {item.maker}" for number, item in items.items()}
    shared = Counter(by_maker.values())
    shelf = {
        number: by_maker[number] if shared[by_maker[number]] >= SHARED_BY else " > ".join(item.categories)
        for number, item in items.items()
    }
    l1, l2 = codes(department), codes(shelf)
    return {number: (l1[number], l2[number], number + NUM_SPECIAL_IDS) for number in items}


def codes(names: dict[int, str]) -> dict[int, int]:
    """Each item's name as a code; names are numbered in alphabetical order, after the special ids."""
    code = {name: at for at, name in enumerate(sorted(set(names.values())), start=NUM_SPECIAL_IDS)}
    return {number: code[name] for number, name in names.items()}


def codebook_sizes(ids: dict[int, SemanticId]) -> list[int]:
    """The largest id of each level + 1, rounded up to a multiple of 64, which suits a GPU."""
    return [-(-(max(level) + 1) // 64) * 64 for level in zip(*ids.values(), strict=True)]


def row(user: str, history: list[int], targets: list[int], ids: dict[int, SemanticId]) -> dict[str, Any]:
    """One JSON Lines row: the most recent items of the history, and the targets, nearest first."""
    recent = [ids[item] for item in history[-HISTORY:]]
    return {"user_id": user, **encoder_lists(recent), **decoder_lists([ids[item] for item in targets])}


def train_rows(
    sequences: dict[str, list[int]], ids: dict[int, SemanticId], cuts: int | None, seed: int
) -> Iterator[dict[str, Any]]:
    """One row per prefix of the training part, or for `cuts` random prefixes if there are more."""
    rng = np.random.Generator(np.random.PCG64(seed))
    for user, sequence in sequences.items():
        items = sequence[:-2]
        lengths = np.arange(1, len(items))
        if cuts is not None and cuts < len(lengths):
            lengths = np.sort(rng.permutation(lengths)[:cuts])
        for length in lengths.tolist():
            yield row(user, items[:length], items[length : length + TARGETS], ids)


def popularity(sequences: dict[str, list[int]], target: int) -> dict[str, float]:
    """Recall and ndcg at 10 of the ten items most frequent in training; `target` is -1 (test) or -2 (evaluation)."""
    counts = Counter(item for sequence in sequences.values() for item in sequence[:-2])
    ranked = sorted(counts, key=lambda item: (-counts[item], item))[:10]
    gain = {item: 1 / math.log2(rank + 1) for rank, item in enumerate(ranked, start=1)}
    targets = [sequence[target] for sequence in sequences.values()]
    return {
        "recall@10": round(sum(item in gain for item in targets) / len(targets), 4),
        "ndcg@10": round(sum(gain.get(item, 0.0) for item in targets) / len(targets), 4),
    }


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes one object per line; returns their number."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for content in rows:
            file.write(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")
            count += 1
    print(f"{path.name}: {count:,} rows", flush=True)
    return count


def make_files(data: Path, out: Path, cuts: int | None, seed: int) -> None:
    items = read_items(data / "items.tsv")
    sequences = read_sequences(data / "sequences.txt", items)
    ids = semantic_ids(items)
    files = {
        "catalogue.jsonl": (catalogue_row(number, item, ids[number]) for number, item in items.items()),
        "train.jsonl": train_rows(sequences, ids, cuts, seed),
        "eval.jsonl": (row(user, sequence[:-2], sequence[-2:-1], ids) for user, sequence in sequences.items()),
        "test.jsonl": (row(user, sequence[:-1], sequence[-1:], ids) for user, sequence in sequences.items()),
    }
    facts = {
        "codebook_sizes": codebook_sizes(ids),
        "items": len(items),
        "rows": {name: write_jsonl(out / name, rows) for name, rows in files.items()},
        "popularity": {"eval": popularity(sequences, -2), "test": popularity(sequences, -1)},
    }
    (out / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(f"facts.json: codebook sizes {facts['codebook_sizes']}, popularity {facts['popularity']}")


def catalogue_row(number: int, item: Item, triple: SemanticId) -> dict[str, Any]:
    l1, l2, l3 = triple
    return {"item_id": str(number), "l1_id": l1, "l2_id": l2, "l3_id": l3, "name": item.title or f"item {number}"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"ugt_composer {__version__}")
    parser.add_argument("--data", type=Path, required=True, help="folder with sequences.txt and items.tsv")
    parser.add_argument("--out", type=Path, required=True, help="output folder; appears only when complete")
    parser.add_argument(
        "--cuts", type=int, help="maximum training rows per user, drawn at random (default: every prefix)"
    )
    parser.add_argument("--seed", type=seed_of, default=7, help="random seed for --cuts (default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of an earlier run in --out")
    args = parser.parse_args(arguments)
    if args.cuts is not None and args.cuts < 1:
        raise UserError(f"--cuts is {args.cuts}; at least 1 is expected")
    with new_folder(args.out, FILES, args.overwrite) as folder:
        make_files(args.data, folder, args.cuts, args.seed)
    print(f"All in {args.out}")
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
