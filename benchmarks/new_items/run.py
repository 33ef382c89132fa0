"""How often a trained model recommends items that it was not trained on, and what they cost the others.

    python benchmarks/new_items/run.py [--data DIR] [--out DIR] [--sets movielens beauty] [--epochs 7] [--seed 1]

Two data sets of --data:

- movielens (ml-latest-small): a split in time. All ratings before the moment at which 60 % of them are given form the
  training data; films that nobody rated before are new. Tested are the likes (4 or more) from that moment on, whose
  histories are all likes of the user before them, new films among them. Most of these users are new, too. A film counts
  as new by its first rating, not by the year of its release, and all films are ranked at any time, those included
  that are rated later: the data do not say when a film was added.
- beauty (Amazon Beauty): its sequences have no times, so a random tenth of the items is new, and removed from the
  training data. Tested is each user's last item; histories are all items before it, new ones among them.

A model is trained on the old items with the settings of benchmarks/amazon_beauty (model.yaml and stage2.yaml), its ids
made with --reserve. Then convert/semantic_ids.py --extend adds the new items by their texts, and `ugt extend` gives the
model their entries. Recall@10 is reported on rows whose target is a new item, among all items and among the new ones
only (`ugt recommend --only`), and on rows whose target is an old one, among all items; their mean in the proportion of
the test rows is what all users see. Items of the history are not ranked. Rankings:

- before: the trained model, which knows the old items only.
- random start: the trained model with the larger catalogue. The new items' entries are as they were initialised.
- from vectors: the model that `ugt extend` wrote.
- with neighbours: with a fifth of the user-item score from item_neighbours.npz, as the import writes it for the old
  items, or --extend for all.
- nearest vectors: no model; items are ranked by the cosine of their vector to the mean of the history's unit vectors.

Writes RESULTS.md beside this file, or into --out with other settings than the defaults. Steps whose results are
already in --out are skipped.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
DATA = ROOT.parent / "shared/data"
sys.path.insert(0, str(ROOT))

from benchmarks.trained_models import BIN, fast_precision, has_data, run, write_results  # noqa: E402
from ugt_composer.checkpoint.portable import read_facts  # noqa: E402

K, MOST_ROWS = 10, {"new": 1000, "old": 1000}
HELD_OUT, TRAINED = 0.1, 0.6
BATCH = 256  # rows; global_train_batch_size of model.yaml
LABELS = ("labels_l1", "labels_l2", "labels_l3")
IDS = ("l1_id", "l2_id", "l3_id")
ROWS = ("--max-history", 20, "--max-targets", 1)
NAMES = ("new, all items", "new, new items only", "old, all items")
ALL_ROWS = "all rows, all items"


class Sources(NamedTuple):
    """Tables of a data set, with and without what is new, and options of the importer.

    Attributes:
        new: the ids of the new items.
        both: options for the two imports, of the old interactions and of all.
        old: options for the import of the old interactions.
        test: options that make the test rows.
    """

    interactions: Path
    items: Path
    old_interactions: Path
    old_items: Path
    new: set[str]
    both: Sequence[object]
    old: Sequence[object]
    test: Sequence[object]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="has the folders ml-latest-small and amazon_beauty")
    parser.add_argument("--out", type=Path, default=Path("new-items-run"))
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    lines = []
    for name in arguments.sets:
        folder, needed, split = SETS[name]
        if not has_data(arguments.data / folder, needed):
            return 2
        out = arguments.out.resolve() / name
        out.mkdir(parents=True, exist_ok=True)
        prepared = out / "fraction_new.json"
        if not prepared.exists():
            prepared.write_text(json.dumps(prepare(split((arguments.data / folder).resolve(), out), out)))
        fraction_new = json.loads(prepared.read_text())
        model = train(out, arguments.epochs, arguments.seed)
        lines += ["", *about(folder, out, model, arguments.epochs, fraction_new), "", *table(out, model, fraction_new)]
    is_default = (arguments.epochs, arguments.seed, arguments.sets) == (7, 1, list(SETS)) and arguments.data == DATA
    head = [
        "# New items",
        "",
        "Written by `python benchmarks/new_items/run.py`, whose head describes the splits and rankings: recall@10 "
        "by whether the target is a new or an old item, and by which items are ranked. "
        f"Seed {arguments.seed}.",
    ]
    write_results("\n".join([*head, *lines]) + "\n", FOLDER if is_default else arguments.out)
    return 0


def movielens(data: Path, out: Path) -> Sources:
    """Split at the moment at which TRAINED of all ratings are given."""
    import polars as pl  # here, because prepared data are trained on without it

    ratings, films = pl.read_csv(data / "ratings.csv"), pl.read_csv(data / "movies.csv")
    moment = ratings["timestamp"].sort()[int(TRAINED * len(ratings))]
    earlier = ratings.filter(pl.col("timestamp") < moment)
    rated, old = (set(table["movieId"]) for table in (ratings, earlier))
    earlier.write_csv(out / "old_ratings.csv")
    for path, ids in ((out / "movies.csv", rated), (out / "old_movies.csv", old)):
        films.filter(pl.col("movieId").is_in(list(ids))).write_csv(path)
    return Sources(
        data / "ratings.csv",
        out / "movies.csv",
        out / "old_ratings.csv",
        out / "old_movies.csv",
        {str(film) for film in rated - old},
        ("--min-rating", 4, "--no-preferences"),
        ("--reserve", 0.6),
        ("--split", "time", "--validation-from", 0.5, "--test-from", moment, "--every-target"),
    )


def beauty(data: Path, out: Path) -> Sources:
    """A random HELD_OUT of the items is new."""
    head, *lines = (data / "items.tsv").read_text("utf-8").splitlines()
    items = [line.split("\t")[0] for line in lines]
    order = np.random.default_rng(0).permutation(len(items))
    new = {items[at] for at in order[: int(HELD_OUT * len(items))]}
    kept = [line for line, item in zip(lines, items, strict=True) if item not in new]
    (out / "old_items.tsv").write_text("\n".join([head, *kept]) + "\n", "utf-8")
    with (out / "old_sequences.txt").open("w", encoding="utf-8") as file:
        for line in (data / "sequences.txt").read_text("utf-8").splitlines():
            user, *sequence = line.split()
            sequence = [item for item in sequence if item not in new]
            if len(sequence) > 2:
                file.write(" ".join([user, *sequence]) + "\n")
    tables = data / "sequences.txt", data / "items.tsv", out / "old_sequences.txt", out / "old_items.tsv"
    return Sources(*tables, new, (), ("--reserve", 0.2), ())


SETS: dict[str, tuple[str, str, Callable[[Path, Path], Sources]]] = {
    "movielens": ("ml-latest-small", "ratings.csv", movielens),
    "beauty": ("amazon_beauty", "sequences.txt", beauty),
}


def prepare(sources: Sources, out: Path) -> float:
    """The rows and ids of the old items, the ids of all, the test rows, and the shards to train on.

    Returns the fraction of all test rows whose target is a new item.
    """
    convert = ROOT / "convert"
    to_rows: list[object] = [sys.executable, convert / "interactions_to_jsonl.py"]
    if not (out / "old/report.json").exists():
        options = ["--items", sources.old_items, *sources.both, *sources.old, "--cuts-per-user", "all", *ROWS]
        run([*to_rows, sources.old_interactions, *options, "--out", out / "old"])
    if not (out / "new/report.json").exists():
        options = ["--extend", out / "old/semantic_ids.json", "--items", sources.items]
        run([sys.executable, convert / "semantic_ids.py", *options, "--out", out / "new"])
    if not (out / "full/report.json").exists():
        options = ["--codes", out / "new/semantic_ids.json", *sources.both, *sources.test, "--cuts-per-user", 1, *ROWS]
        run([*to_rows, sources.interactions, *options, "--out", out / "full"])
    if not (out / "mds/index.json").exists():
        options = ["--kind", "recommend", "--codebook-sizes", *sizes_of(out), "--max-positions", 32, "--max-target", 1]
        run([sys.executable, convert / "jsonl_to_mds.py", out / "old/train.jsonl", *options, "--out", out / "mds"])
    (out / "new.txt").write_text("".join(f"{item}\n" for item in sorted(sources.new)))
    is_new = {tuple(line[key] for key in IDS): line["item_id"] in sources.new for line in catalogue_of(out)}
    rows: dict[str, list[str]] = {"new": [], "old": []}
    for line in (out / "full/test.jsonl").read_text("utf-8").splitlines():
        rows["new" if is_new[target_of(json.loads(line))] else "old"].append(line)
    for part, lines in rows.items():
        order = np.random.default_rng(0).permutation(len(lines))[: MOST_ROWS[part]]
        (out / f"test_{part}.jsonl").write_text("".join(f"{lines[at]}\n" for at in sorted(order)), "utf-8")
    return len(rows["new"]) / (len(rows["new"]) + len(rows["old"]))


def train(out: Path, epochs: int, seed: int) -> Path:
    """Trains stage 2 from the item vectors, and extends the model. Returns the save folder."""
    folder = out / f"model-{epochs}-{seed}"
    overrides = [
        f"seed={seed}",
        f"max_duration={epochs}ep",
        "eval_interval=100ep",
        "save_best_on=null",
        f"precision={fast_precision()}",
        f"save_folder={folder}",
        f"model.codebook_sizes={sizes_of(out)}",
        f"data.catalogue={out / 'old/catalogue.jsonl'}",
        f"data.train.local={out / 'mds'}",
        "data.eval.local=null",
        "init_from=null",
        f"init_item_vectors={out / 'old/item_vectors.npy'}",
        "loggers.progress_bar=false",
    ]
    extended = extended_of(folder)
    if not extended.exists():
        yamls = [ROOT / "benchmarks/amazon_beauty" / name for name in ("model.yaml", "stage2.yaml")]
        run([BIN / "composer", "-n", "1", ROOT / "train.py", ROOT / "yamls/stage2.yaml", *yamls, *overrides])
        files = ["--catalogue", out / "new/catalogue.jsonl", "--item-vectors", out / "new/item_vectors.npy"]
        run([BIN / "ugt", "extend", "--checkpoint", folder / "latest", *files, "--out", extended])
    return folder


def extended_of(model: Path) -> Path:
    return model.with_name(f"{model.name}-extended")


def about(title: str, out: Path, model: Path, epochs: int, fraction_new: float) -> list[str]:
    old, new = (json.loads((out / name / "report.json").read_text()) for name in ("old", "new"))
    counts = {part: len(list(read_lines(out / f"test_{part}.jsonl"))) for part in MOST_ROWS}
    items, rows = new["extension"], old["rows"]["train.jsonl"]
    trained, scheduled = int(read_facts(model / "latest")["batch"]), epochs * -(-rows // BATCH)
    stopped = "" if trained == scheduled else ", where its training was stopped"
    return [
        f"## {title}",
        "",
        f"{items['old_items']:,} old items, {items['new_items']:,} new ones; {rows:,} training "
        f"rows; the model was trained for {trained:,} of {scheduled:,} batches{stopped}; {counts['new']:,} test "
        f"rows with a new target, {counts['old']:,} with an old one, drawn of all test rows, of which "
        f"{fraction_new:.1%} have a new target.",
    ]


def table(out: Path, model: Path, fraction_new: float) -> list[str]:
    latest, extended = model / "latest", extended_of(model)
    more = ["--catalogue", out / "new/catalogue.jsonl"]
    old_neighbours, neighbours = (
        ["--item-neighbours", out / name / "item_neighbours.npz", "--neighbour-weight", 0.2] for name in ("old", "new")
    )
    rows: dict[str, tuple[float | None, float | None, float]] = {
        "before": (None, None, recall(out, latest, "old", [])),
        "before, with neighbours": (None, None, recall(out, latest, "old", old_neighbours)),
        "random start": recalls(out, latest, more),
        "from vectors": recalls(out, extended, []),
        "from vectors, with neighbours": recalls(out, extended, neighbours),
        "nearest vectors": nearest_vectors(out),
    }
    lines = ["| | " + " | ".join([*NAMES, ALL_ROWS]) + " |", "|---|" + "---|" * (len(NAMES) + 1)]
    for title, (new, only_new, old) in rows.items():
        values = new, only_new, old, fraction_new * (new or 0.0) + (1 - fraction_new) * old
        lines.append(f"| {title} | " + " | ".join("" if value is None else f"{value:.4f}" for value in values) + " |")
    return lines


def recalls(out: Path, checkpoint: Path, options: Sequence[object]) -> tuple[float, float, float]:
    """Recall@K for each of NAMES."""
    only = ["--only", out / "new.txt"]
    new, only_new = recall(out, checkpoint, "new", options), recall(out, checkpoint, "new", [*options, *only])
    return new, only_new, recall(out, checkpoint, "old", options)


def recall(out: Path, checkpoint: Path, part: str, options: Sequence[object]) -> float:
    """Recall@K of `ugt recommend` for the test rows of a part; a row's target is its label."""
    kinds = [name for name in ("--catalogue", "--only", "--item-neighbours") if name in options]
    name = "".join([checkpoint.parent.name, "-", checkpoint.name, "-", part, *kinds, ".jsonl"])
    lists, rows = out / "lists" / name, out / f"test_{part}.jsonl"
    if not lists.exists():
        lists.parent.mkdir(exist_ok=True)
        words = ["--checkpoint", checkpoint, "--history", rows, "-k", K, "--json", *options]
        partial = lists.with_suffix(".partial")
        run(["sh", "-c", 'out="$1"; shift; exec "$@" > "$out"', "sh", partial, BIN / "ugt", "recommend", *words])
        partial.rename(lists)
    hits = [
        target_of(row) in {tuple(entry[key] for key in IDS) for entry in made["recommendations"]}
        for row, made in zip(read_lines(rows), read_lines(lists), strict=True)
    ]
    return float(np.mean(hits))


def nearest_vectors(out: Path) -> tuple[float, float, float]:
    """Recall@K for each of NAMES."""
    vectors = np.load(out / "new/item_vectors.npy")
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    new = set((out / "new.txt").read_text().split())
    catalogue = list(catalogue_of(out))
    row_of = {tuple(line[key] for key in IDS): row for row, line in enumerate(catalogue)}
    is_new = np.array([line["item_id"] in new for line in catalogue])
    above_target = {}
    for part in MOST_ROWS:
        ranks = []
        for row in read_lines(out / f"test_{part}.jsonl"):
            ids = zip(*(row[f"encoder_l{level}_ids"] for level in (1, 2, 3)), strict=True)
            history = [row_of[item] for item in ids if item in row_of]
            scores = vectors @ vectors[history].mean(axis=0)
            scores[history] = -np.inf
            above = scores > scores[row_of[target_of(row)]]
            ranks.append((above.sum(), above[is_new].sum()))
        above_target[part] = (np.array(ranks) < K).mean(axis=0)
    new, only_new = above_target["new"].tolist()
    return new, only_new, float(above_target["old"][0])


def sizes_of(out: Path) -> list[int]:
    return json.loads((out / "old/report.json").read_text())["codebook_sizes"]


def catalogue_of(out: Path) -> Iterator[dict]:
    return read_lines(out / "new/catalogue.jsonl")


def target_of(row: dict) -> tuple[int, ...]:
    return tuple(row[key][0] for key in LABELS)


def read_lines(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


if __name__ == "__main__":
    sys.exit(main())
