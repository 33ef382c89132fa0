"""Amazon Beauty (2014, 5-core), leave-one-out, ranked against all 12,101 items: UGT and baselines.

    python benchmarks/amazon_beauty/run.py [--data DIR] [--out DIR] [--seeds 1 2 3] [--rival-seeds 1 2 3] [--jobs 2]
    python benchmarks/amazon_beauty/run.py --held-out-set users    # the same on a part that no setting is chosen on
    python benchmarks/amazon_beauty/run.py --untrained             # prints the baselines without training only
    python benchmarks/amazon_beauty/run.py --out DIR --set max_duration=9ep model.dropout=0.3

Imports `sequences.txt` and `items.tsv` of --data with convert/interactions_to_jsonl.py. For each seed, trains stage 2
with the `composer` command from the item vectors, without stage 1: its loss includes that of stage 1, and an epoch of
stage 1 before it made the validation metrics worse. Chooses the weight of the user-item score, then the fraction of the
counted neighbours in it, on the first seed's validation items, evaluates the test items once per seed, evaluates the
baselines likewise and writes RESULTS.md beside this file, or into --out with --set or for another data set in --data
with the same format. Steps whose results are already in --out are skipped, so each --set needs its own. Same-day
interactions keep the order of the file.
`held_out_sets.py` describes the sets of --held-out-set, whose results are written into --out.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.amazon_beauty import held_out_sets, rivals, sasrec  # noqa: E402
from benchmarks.trained_models import (  # noqa: E402
    BIN,
    Scores,
    codebook_override,
    convert_once,
    fast_precision,
    has_data,
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
NEIGHBOUR_WEIGHTS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)
NAMES = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
MODES = {"all items": "--include-seen", "without the history's": "--exclude-seen"}
# Same data and split, by what they rank: all items, those that are not in the history, or not known which.
PUBLISHED_ROWS: dict[str, dict[str, tuple[float | None, ...]]] = {
    "all items": {
        "SASRec, in TIGER's paper": (0.0387, 0.0249, 0.0605, 0.0318),
        "TIGER (generative)": (0.0454, 0.0321, 0.0648, 0.0384),
        "ActionPiece (generative)": (0.0511, 0.0340, 0.0775, 0.0424),
        "SASRec, cross-entropy, RecBole (LETTER #20)": (0.0543, 0.0315, 0.0821, 0.0405),
    },
    "without the history's": {
        "SASRec, sampled softmax (blondered/transformer_benchmark)": (None, None, 0.0921, 0.0531),
        "eSASRec (arXiv 2508.06450)": (None, None, 0.0928, 0.0523),
    },
    "not known which items": {
        "SASRec, tuned (cornac)": (0.0508, 0.0348, 0.0740, 0.0423),
        "LC-Rec (generative, LLM; phonism/genrec)": (0.0525, 0.0352, 0.0791, 0.0438),
        "EAGER-LLM (generative, LLM; second hand)": (0.0548, 0.0369, 0.0830, 0.0459),
        "EnsRec, id model + text model (arXiv 2512.17820; second hand)": (None, None, 0.0980, 0.0565),
    },
}
PUBLISHED: dict[str, list[Scores]] = {
    f"published: {name}; {mode}": [{key: value for key, value in zip(NAMES, row, strict=True) if value is not None}]
    for mode, rows in PUBLISHED_ROWS.items()
    for name, row in rows.items()
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/amazon_beauty")
    parser.add_argument("--out", type=Path, default=Path("beauty-run"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rival-seeds", type=int, nargs="*", help="seeds of SASRec (default: those of --seeds)")
    parser.add_argument("--held-out-set", choices=held_out_sets.SETS, help="use this part of --data instead")
    parser.add_argument("--untrained", action="store_true", help="train nothing; print the baselines without training")
    parser.add_argument("--jobs", type=int, default=available_cpus(), help="parallel trainings, on one core each")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the training")
    arguments = parser.parse_args()
    if not has_data(arguments.data, "sequences.txt"):
        return 2
    data, out = arguments.data.resolve(), arguments.out.resolve()
    if arguments.held_out_set is not None:
        out = out / arguments.held_out_set
        data = held_out_data(arguments.held_out_set, data, out)
    if arguments.untrained:
        print("\n".join(table(NAMES, evaluate_untrained(data))))
        return 0
    rival_seeds = arguments.seeds if arguments.rival_seeds is None else arguments.rival_seeds
    out.mkdir(parents=True, exist_ok=True)
    prepare(data, out)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        trainings = pool.map(lambda seed: train(out, seed, arguments.set), arguments.seeds)
        networks = pool.map(lambda seed: trained_sasrec(data, out, seed), rival_seeds)
        minutes = list(trainings)
        scores = evaluate_ours(out, arguments.seeds, pool) | evaluate_untrained(data)
        if rival_seeds:
            scores |= evaluate_sasrec(data, list(networks))
    text = results(data, out, scores, minutes, arguments.seeds, rival_seeds)
    write_results(text, FOLDER if is_published(data) and not arguments.set else out)
    return 0


def held_out_data(name: str, data: Path, out: Path) -> Path:
    folder = out / f"{data.name}-{name}"
    if not (folder / "sequences.txt").exists():
        held_out_sets.write_set(name, data, folder)
    return folder


def prepare(data: Path, out: Path) -> None:
    tables = [data / "sequences.txt", "--items", data / "items.tsv"]
    import_once(out, [*tables, "--cuts-per-user", "all", "--max-history", "20", "--max-targets", "1"])
    for part in ("train", "validation", "test"):
        convert_once(out, part, ["--max-positions", "32", "--max-target", "1"])


def train(out: Path, seed: int, options: Sequence[str] = ()) -> float:
    """Trains stage 2 from the item vectors. Returns the duration in minutes.

    Args:
        options: overrides, such as "max_duration=9ep".
    """
    clock = out / f"seed{seed}/minutes.json"
    if clock.exists():
        return json.loads(clock.read_text())
    started = time.monotonic()
    overrides = [
        f"seed={seed}",
        f"precision={fast_precision()}",
        f"save_folder={out / f'seed{seed}/stage2'}",
        codebook_override(out),
        f"data.catalogue={out / 'data/catalogue.jsonl'}",
        f"data.train.local={out / 'mds/train'}",
        f"data.eval.local={out / 'mds/validation'}",
        "init_from=null",
        f"init_item_vectors={out / 'data/item_vectors.npy'}",
        *options,
    ]
    train_stage(2, FOLDER, overrides)
    minutes = (time.monotonic() - started) / 60
    clock.write_text(json.dumps(minutes))
    return minutes


def evaluate_ours(out: Path, seeds: list[int], pool: ThreadPoolExecutor) -> dict[str, list[Scores]]:
    """Test scores per seed for each mode, with the weights that are best on the first seed's validation items."""
    results_by_name = {}
    for mode, option in MODES.items():
        plain = best_on_validation(out, seeds[0], [(weight, 0.0) for weight in WEIGHTS], option, pool)
        mixed = best_on_validation(
            out, seeds[0], [(plain[0], fraction) for fraction in NEIGHBOUR_WEIGHTS], option, pool
        )
        rankings = {
            "generated score alone": (0.0, 0.0),
            f"with {plain[0]:g} × the user-item score": plain,
            f"with {mixed[0]:g} × that score, {mixed[1]:g} of it from neighbours": mixed,
        }
        for name, weights in rankings.items():
            tests = pool.map(lambda seed: evaluate(out, seed, "test", weights, option), seeds)  # noqa: B023
            results_by_name[f"UGT, {name}; {mode}"] = list(tests)
    return results_by_name


Weights = tuple[float, float]  # of the user-item score, and of the neighbours in it


def best_on_validation(
    out: Path, seed: int, candidates: list[Weights], option: str, pool: ThreadPoolExecutor
) -> Weights:
    scores = pool.map(lambda weights: evaluate(out, seed, "validation", weights, option), candidates)
    ndcg = {weights: score["ndcg@10"] for weights, score in zip(candidates, scores, strict=True)}
    print(f"{option}: ndcg@10 on validation by weights: {ndcg}")
    return max(ndcg, key=ndcg.__getitem__)


def evaluate(out: Path, seed: int, part: str, weights: Weights, option: str) -> Scores:
    weight, fraction = weights
    report = out / f"seed{seed}/{part}-{weight:g}-{fraction:g}{option}.json"
    if not report.exists():
        command = [
            BIN / "ugt",
            "evaluate",
            "--checkpoint",
            out / f"seed{seed}/stage2/best",
            "--data",
            out / f"mds/{part}",
        ]
        command += ["--item-neighbours", out / "data/item_neighbours.npz", "--neighbour-weight", fraction]
        run([*command, "-k", "5", "10", "--beam-width", "50", "--item-score-weight", weight, option, "--json", report])
    return json.loads(report.read_text())["metrics"]


def evaluate_untrained(data: Path) -> dict[str, list[Scores]]:
    sequences = rivals.read_sequences(data / "sequences.txt")
    items = max(map(max, sequences))
    test, validation = (Targets.of(sequences, part) for part in (-1, -2))
    popularity = rivals.popularity_scores(sequences, items)
    counts, cosines = (
        rivals.cooccurrence_scores(sequences, items, test.histories, kind) for kind in ("counts", "cosines")
    )
    transitions = rivals.transition_scores(sequences, items, test.histories)
    earlier = rivals.cooccurrence_scores(sequences, items, validation.histories, "cosines")
    earlier_transitions = rivals.transition_scores(sequences, items, validation.histories)
    results_by_name = {}
    for mode in MODES:
        exclude = mode != "all items"
        ndcg = {
            weight: validation.scores(earlier + weight * earlier_transitions, exclude)["ndcg@10"]
            for weight in rivals.TRANSITION_WEIGHTS
        }
        best = max(ndcg, key=ndcg.__getitem__)
        print(f"{mode}: ndcg@10 on validation by weight of the transitions: {ndcg}", file=sys.stderr)
        for name, scores in {
            "popularity": popularity,
            "item co-occurrence, counts": counts,
            "item co-occurrence, cosines": cosines,
            "transitions": transitions,
            f"cosines + {best:g} × transitions": cosines + best * transitions,
        }.items():
            results_by_name[f"{name}; {mode}"] = [test.scores(scores, exclude)]
    return results_by_name


def evaluate_sasrec(data: Path, networks: list[sasrec.SASRec]) -> dict[str, list[Scores]]:
    test = Targets.of(rivals.read_sequences(data / "sequences.txt"), -1)
    return {
        f"SASRec, full softmax; {mode}": [
            scores_of(sasrec.ranks(network, test.histories, test.items, mode != "all items")) for network in networks
        ]
        for mode in MODES
    }


class Targets(NamedTuple):
    """The users' items that are to be found, and what came before them."""

    histories: list[list[int]]
    items: np.ndarray

    @classmethod
    def of(cls, sequences: list[list[int]], part: int) -> "Targets":
        """part: -1 for the test items, -2 for those of validation."""
        return cls([sequence[:part] for sequence in sequences], np.array([sequence[part] for sequence in sequences]))

    def scores(self, scores: np.ndarray | sparse.csr_matrix, exclude_seen: bool) -> Scores:
        return scores_of(rivals.ranks_of(scores, self.histories, self.items, exclude_seen))


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
    rival = "" if rival_seeds in ([], seeds) else f" (of SASRec over {seeds_in_words(rival_seeds)})"
    lines = [
        f"# {data.name}: leave-one-out, {users:,} users, all {items:,} items ranked",
        "",
        "Written by `python benchmarks/amazon_beauty/run.py`. Each row is the mean over "
        f"{seeds_in_words(seeds)}{rival}, ± their standard deviation, on the test items; rows without ± involve no "
        "seed. Same-day interactions keep the order of the file. All choices were made on the validation items.",
        "",
        f"Training UGT took {np.mean(minutes):.0f} minutes per seed on {device()} ({machine()}).",
        "",
        *table(NAMES, scores | (PUBLISHED if is_published(data) else {})),
    ]
    return "\n".join(lines) + "\n"


def is_published(data: Path) -> bool:
    return data.name == FOLDER.name


def device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"one core, in {fast_precision()}"


def machine() -> str:
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main())
