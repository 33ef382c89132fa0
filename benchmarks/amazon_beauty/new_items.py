"""Amazon Beauty with a tenth of the items held out: how often a model recommends items that it was not trained on.

    python benchmarks/amazon_beauty/new_items.py [--data DIR] [--out DIR] [--epochs 3] [--seed 1]

1,210 random items are removed from the table of items and from all sequences. A model is trained on the others, its
ids made with --reserve 0.2. Then convert/semantic_ids.py --extend adds the held-out items, and `ugt extend` gives the
model their entries. Tested are the users whose last item is a held-out one; their histories are all items before it,
other held-out ones among them. Recall@10 is that among all 12,101 items, and among the held-out items only
(`ugt recommend --only`), of:

- random start: the trained model with the larger catalogue. The held-out items' entries are as they were initialised.
- from vectors: the model that `ugt extend` wrote.
- nearest vectors: no model; items are ranked by the cosine of their vector to the mean of the history's unit vectors.

Users whose last item was trained on show what the new items cost: before with the old items, after with all of them.
Steps whose results are already in --out are skipped.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.trained_models import BIN, cpu_precision, has_data, run  # noqa: E402

HELD_OUT, OLD_TARGETS, K = 0.1, 2000, 10
LABELS = ("labels_l1", "labels_l2", "labels_l3")
IDS = ("l1_id", "l2_id", "l3_id")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/amazon_beauty")
    parser.add_argument("--out", type=Path, default=Path("new-items-run"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if not has_data(arguments.data, "sequences.txt"):
        return 2
    data, out = arguments.data.resolve(), arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    prepare(data, out)
    model = train(out, arguments.epochs, arguments.seed)
    extended = model.with_name(f"{model.name}-extended")
    if not extended.exists():
        files = ["--catalogue", out / "new/catalogue.jsonl", "--item-vectors", out / "new/item_vectors.npy"]
        run([BIN / "ugt", "extend", "--checkpoint", model / "latest", *files, "--out", extended])
    new = ["--catalogue", out / "new/catalogue.jsonl"]
    print("| held-out items are the targets | recall@10, all items | recall@10, held-out items only |\n|---|---|---|")
    for title, checkpoint, options in (("random start", model / "latest", new), ("from vectors", extended, [])):
        both = [recall(out, checkpoint, "test_new", [*options, *only]) for only in ([], ["--only", out / "new.txt"])]
        print(f"| {title} | {both[0]:.4f} | {both[1]:.4f} |", flush=True)
    print("| nearest vectors | {:.4f} | {:.4f} |".format(*nearest_vectors(out)))
    print("\n| trained items are the targets | recall@10 |\n|---|---|")
    print(f"| the old items | {recall(out, model / 'latest', 'test_old', []):.4f} |", flush=True)
    print(f"| all items, new ones from vectors | {recall(out, extended, 'test_old', []):.4f} |")
    return 0


def prepare(data: Path, out: Path) -> None:
    """The rows and ids of the old items, the ids of all, the test rows, and the shards to train on."""
    convert, max_rows = ROOT / "convert", ["--max-history", 20, "--max-targets", 1]
    held_out = write_old_items(data, out)
    if not (out / "old/report.json").exists():
        sources = [out / "sequences.txt", "--items", out / "items.tsv", "--reserve", 0.2, "--cuts-per-user", 6]
        run([sys.executable, convert / "interactions_to_jsonl.py", *sources, *max_rows, "--out", out / "old"])
    if not (out / "new/report.json").exists():
        sources = ["--extend", out / "old/semantic_ids.json", "--items", data / "items.tsv"]
        run([sys.executable, convert / "semantic_ids.py", *sources, "--out", out / "new"])
    if not (out / "full/report.json").exists():
        sources = [data / "sequences.txt", "--codes", out / "new/semantic_ids.json", "--cuts-per-user", 1]
        run([sys.executable, convert / "interactions_to_jsonl.py", *sources, *max_rows, "--out", out / "full"])
    if not (out / "mds/index.json").exists():
        sizes = json.loads((out / "old/report.json").read_text())["codebook_sizes"]
        options = ["--kind", "recommend", "--codebook-sizes", *sizes, "--max-positions", 32, "--max-target", 1]
        run([sys.executable, convert / "jsonl_to_mds.py", out / "old/train.jsonl", *options, "--out", out / "mds"])
    catalogue = read_lines(out / "new/catalogue.jsonl")
    is_new = {tuple(line[key] for key in IDS): line["item_id"] in held_out for line in catalogue}
    (out / "new.txt").write_text("".join(f"{item}\n" for item in sorted(held_out)))
    tests: dict[str, list[str]] = {"test_new": [], "test_old": []}
    for line in (out / "full/test.jsonl").read_text("utf-8").splitlines():
        tests["test_new" if is_new[target_of(json.loads(line))] else "test_old"].append(line)
    (out / "test_new.jsonl").write_text("\n".join(tests["test_new"]) + "\n", "utf-8")
    (out / "test_old.jsonl").write_text("\n".join(tests["test_old"][:OLD_TARGETS]) + "\n", "utf-8")


def write_old_items(data: Path, out: Path) -> set[str]:
    """Writes the table and the sequences without the held-out items, which are returned."""
    head, *lines = (data / "items.tsv").read_text("utf-8").splitlines()
    items = [line.split("\t")[0] for line in lines]
    order = np.random.default_rng(0).permutation(len(items))
    held_out = {items[at] for at in order[: int(HELD_OUT * len(items))]}
    kept = [line for line, item in zip(lines, items, strict=True) if item not in held_out]
    (out / "items.tsv").write_text("\n".join([head, *kept]) + "\n", "utf-8")
    with (out / "sequences.txt").open("w", encoding="utf-8") as file:
        for line in (data / "sequences.txt").read_text("utf-8").splitlines():
            user, *sequence = line.split()
            sequence = [item for item in sequence if item not in held_out]
            if len(sequence) > 2:
                file.write(" ".join([user, *sequence]) + "\n")
    return held_out


def train(out: Path, epochs: int, seed: int) -> Path:
    """Trains stage 2 from the item vectors. Returns the save folder."""
    folder = out / f"model-{epochs}-{seed}"
    sizes = json.loads((out / "old/report.json").read_text())["codebook_sizes"]
    overrides = [
        f"seed={seed}",
        f"max_duration={epochs}ep",
        f"precision={cpu_precision()}",
        f"save_folder={folder}",
        f"model.codebook_sizes={sizes}",
        f"data.catalogue={out / 'old/catalogue.jsonl'}",
        f"data.train.local={out / 'mds'}",
        "data.eval.local=null",
        "init_from=null",
        f"init_item_vectors={out / 'old/item_vectors.npy'}",
    ]
    if not folder.with_name(f"{folder.name}-extended").exists():
        yamls = [ROOT / "yamls/stage2.yaml", FOLDER / "model.yaml", FOLDER / "new_items.yaml"]
        run([BIN / "composer", "-n", "1", ROOT / "train.py", *yamls, *overrides])
    return folder


def recall(out: Path, checkpoint: Path, part: str, options: Sequence[object]) -> float:
    """Recall@K of `ugt recommend` for the rows of a part; a row's target is its label."""
    name = f"{part}-{'only' if '--only' in options else 'all'}.jsonl"
    lists = out / "lists" / f"{checkpoint.parent.name}-{checkpoint.name}-{name}"
    if not lists.exists():
        lists.parent.mkdir(exist_ok=True)
        words = ["--checkpoint", checkpoint, "--history", out / f"{part}.jsonl", "-k", K, "--json", *options]
        partial = lists.with_suffix(".partial")
        run(["sh", "-c", 'out="$1"; shift; exec "$@" > "$out"', "sh", partial, BIN / "ugt", "recommend", *words])
        partial.rename(lists)
    hits = [
        target_of(row) in {tuple(entry[key] for key in IDS) for entry in made["recommendations"]}
        for row, made in zip(read_lines(out / f"{part}.jsonl"), read_lines(lists), strict=True)
    ]
    return float(np.mean(hits))


def nearest_vectors(out: Path) -> tuple[float, float]:
    """Recall@K among all items and among the held-out ones."""
    vectors = np.load(out / "new/item_vectors.npy")
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    held_out = set((out / "new.txt").read_text().split())
    catalogue = list(read_lines(out / "new/catalogue.jsonl"))
    row_of = {tuple(line[key] for key in IDS): row for row, line in enumerate(catalogue)}
    is_new = np.array([line["item_id"] in held_out for line in catalogue])
    ranks = []
    for row in read_lines(out / "test_new.jsonl"):
        ids = zip(*(row[f"encoder_l{level}_ids"] for level in (1, 2, 3)), strict=True)
        history = [row_of[item] for item in ids if item in row_of]
        scores = vectors @ vectors[history].mean(axis=0)
        scores[history] = -np.inf
        above = scores > scores[row_of[target_of(row)]]
        ranks.append((above.sum(), above[is_new].sum()))
    all_items, only_new = (np.array(ranks) < K).mean(axis=0)
    return float(all_items), float(only_new)


def target_of(row: dict) -> tuple[int, ...]:
    return tuple(row[key][0] for key in LABELS)


def read_lines(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


if __name__ == "__main__":
    sys.exit(main())
