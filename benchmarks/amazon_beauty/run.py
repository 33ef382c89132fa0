"""Amazon Beauty (2014, 5-core), leave-one-out, ranked against all 12,101 items: UGT and baselines.

    python benchmarks/amazon_beauty/run.py [--data DIR] [--out DIR] [--seeds 1 2 3] [--rival-seeds 1 2 3] [--jobs 2]

Imports `sequences.txt` and `items.tsv` of --data with convert/interactions_to_jsonl.py. For each seed, trains stage 2
with the `composer` command from the item vectors, without stage 1: its loss includes that of stage 1, and an epoch of
stage 1 before it made the validation metrics worse. Chooses the weight of the user-item score on the first seed's
validation items, evaluates the test items once per seed, evaluates the baselines likewise and writes RESULTS.md beside
this file, or into --out for another data set in --data with the same format. Steps whose results are already in --out
are skipped. Same-day interactions keep the order of the file.
"""

import argparse
import json
import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.amazon_beauty import rivals, sasrec  # noqa: E402
from benchmarks.trained_models import (  # noqa: E402
    BIN,
    Scores,
    codebook_override,
    convert_once,
    cpu_precision,
    import_once,
    import_report,
    run,
    seeds_in_words,
    table,
    train_stage,
    write_results,
)
from ugt_composer.job.cpus import available_cpus  # noqa: E402

WEIGHTS = (1.0, 4.0, 16.0)
NAMES = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
MODES = {"all items": "--include-seen", "without the history's": "--exclude-seen"}
PUBLISHED = {
    "published: SASRec, tuned (cornac)": [
        {"recall@5": 0.0508, "ndcg@5": 0.0348, "recall@10": 0.0740, "ndcg@10": 0.0423}
    ],
    "published: SASRec with sampled softmax (blondered)": [{"recall@10": 0.0921, "ndcg@10": 0.0531}],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/amazon_beauty")
    parser.add_argument("--out", type=Path, default=Path("beauty-run"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rival-seeds", type=int, nargs="+", help="seeds of SASRec (default: those of --seeds)")
    parser.add_argument("--jobs", type=int, default=available_cpus(), help="parallel trainings, on one core each")
    arguments = parser.parse_args()
    if not (arguments.data / "sequences.txt").exists():
        print(
            f"error: {arguments.data} has no sequences.txt; set --data to the folder that contains it", file=sys.stderr
        )
        return 2
    data, out = arguments.data.resolve(), arguments.out.resolve()
    rival_seeds = arguments.rival_seeds or arguments.seeds
    out.mkdir(parents=True, exist_ok=True)
    prepare(data, out)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        trainings = pool.map(lambda seed: train(out, seed), arguments.seeds)
        networks = pool.map(lambda seed: trained_sasrec(data, out, seed), rival_seeds)
        minutes = list(trainings)
        scores = evaluate_ours(out, arguments.seeds, pool) | evaluate_rivals(data, list(networks))
    write_results(
        results(data, out, scores, minutes, arguments.seeds, rival_seeds), FOLDER if is_published(data) else out
    )
    return 0


def prepare(data: Path, out: Path) -> None:
    tables = [data / "sequences.txt", "--items", data / "items.tsv"]
    import_once(out, [*tables, "--cuts-per-user", "all", "--max-history", "20", "--max-targets", "1"])
    for part in ("train", "validation", "test"):
        convert_once(out, part, ["--max-positions", "32", "--max-target", "1"])


def train(out: Path, seed: int) -> float:
    """Trains stage 2 from the item vectors. Returns the duration in minutes."""
    clock = out / f"seed{seed}/minutes.json"
    if clock.exists():
        return json.loads(clock.read_text())
    started = time.monotonic()
    overrides = [
        f"seed={seed}",
        f"precision={cpu_precision()}",
        f"save_folder={out / f'seed{seed}/stage2'}",
        codebook_override(out),
        f"data.catalogue={out / 'data/catalogue.jsonl'}",
        f"data.train.local={out / 'mds/train'}",
        f"data.eval.local={out / 'mds/validation'}",
        "init_from=null",
        f"init_item_vectors={out / 'data/item_vectors.npy'}",
    ]
    train_stage(2, FOLDER, overrides)
    minutes = (time.monotonic() - started) / 60
    clock.write_text(json.dumps(minutes))
    return minutes


def evaluate_ours(out: Path, seeds: list[int], pool: ThreadPoolExecutor) -> dict[str, list[Scores]]:
    """Test scores per seed for each mode, with the weight that is best on the first seed's validation items."""
    results_by_name = {}
    for mode, option in MODES.items():
        scores = pool.map(lambda weight: evaluate(out, seeds[0], "validation", weight, option), WEIGHTS)  # noqa: B023
        ndcg = {weight: score["ndcg@10"] for weight, score in zip(WEIGHTS, scores, strict=True)}
        best = max(ndcg, key=ndcg.__getitem__)
        print(f"{mode}: ndcg@10 on validation by weight: {ndcg}")
        for name, weight in (("generated score alone", 0.0), (f"with {best:g} × the user-item score", best)):
            tests = pool.map(lambda seed: evaluate(out, seed, "test", weight, option), seeds)  # noqa: B023
            results_by_name[f"UGT, {name}; {mode}"] = list(tests)
    return results_by_name


def evaluate(out: Path, seed: int, part: str, weight: float, option: str) -> Scores:
    report = out / f"seed{seed}/{part}-{weight:g}{option}.json"
    if not report.exists():
        command = [
            BIN / "ugt",
            "evaluate",
            "--checkpoint",
            out / f"seed{seed}/stage2/best",
            "--data",
            out / f"mds/{part}",
        ]
        run([*command, "-k", "5", "10", "--beam-width", "50", "--item-score-weight", weight, option, "--json", report])
    return json.loads(report.read_text())["metrics"]


def evaluate_rivals(data: Path, networks: list[sasrec.SASRec]) -> dict[str, list[Scores]]:
    sequences = rivals.read_sequences(data / "sequences.txt")
    items = max(map(max, sequences))
    histories, targets = [s[:-1] for s in sequences], np.array([s[-1] for s in sequences])
    cooccurrence = {kind: rivals.cooccurrence_scores(sequences, items, histories, kind) for kind in rivals.KINDS}
    results_by_name = {}
    for mode in MODES:
        exclude = mode != "all items"
        popularity = rivals.popularity_scores(sequences, items)
        results_by_name[f"popularity; {mode}"] = [scores_of(rivals.ranks_of(popularity, histories, targets, exclude))]
        for kind, scores in cooccurrence.items():
            name = f"item co-occurrence, {kind}; {mode}"
            results_by_name[name] = [scores_of(rivals.ranks_of(scores, histories, targets, exclude))]
        results_by_name[f"SASRec, full softmax; {mode}"] = [
            scores_of(sasrec.ranks(network, histories, targets, exclude)) for network in networks
        ]
    return results_by_name


def trained_sasrec(data: Path, out: Path, seed: int) -> sasrec.SASRec:
    path = out / f"sasrec-{seed}.pt"
    if not path.exists():
        run([sys.executable, FOLDER / "sasrec.py", data / "sequences.txt", "--seed", seed, "--out", path])
    return sasrec.load(path)


def scores_of(ranks: np.ndarray) -> Scores:
    scores = {}
    for k in (5, 10):
        hit = ranks < k
        scores[f"recall@{k}"] = float(hit.mean())
        scores[f"ndcg@{k}"] = float((hit / np.log2(ranks + 2)).mean())
    return scores


def results(
    data: Path,
    out: Path,
    scores: dict[str, list[Scores]],
    minutes: list[float],
    seeds: list[int],
    rival_seeds: list[int],
) -> str:
    report = import_report(out)
    users, items = report["users"], report["quality"]["items"]
    rival = "" if rival_seeds == seeds else f" (of SASRec over {seeds_in_words(rival_seeds)})"
    lines = [
        f"# {data.name}: leave-one-out, {users:,} users, all {items:,} items ranked",
        "",
        "Written by `python benchmarks/amazon_beauty/run.py`. Each row is the mean over "
        f"{seeds_in_words(seeds)}{rival}, ± their standard deviation, on the test items; rows without ± involve no "
        "seed. Same-day interactions keep the order of the file. All choices were made on the validation items.",
        "",
        f"Training UGT takes {np.mean(minutes):.0f} minutes per seed on one core, in {cpu_precision()} ({machine()}).",
        "",
        *table(NAMES, scores | (PUBLISHED if is_published(data) else {})),
    ]
    return "\n".join(lines) + "\n"


def is_published(data: Path) -> bool:
    return data.name == FOLDER.name


def machine() -> str:
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main())
