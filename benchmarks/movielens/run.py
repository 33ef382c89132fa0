"""MovieLens (ml-latest-small): the effect of preference alignment on preferences and on ranking.

    python benchmarks/movielens/run.py [--data DIR] [--out DIR] [--seeds 1 2 3] [--jobs 2]

Imports ratings.csv and movies.csv of --data and holds out all ratings of 15 % of the users. Trains stages 1 and 2 on
films rated 4 or more, and stage 3 on pairs of a film rated 4 or more and one rated 2 or less, with each of three
preference losses. Evaluates on data not used in training: the pairs of the held-out users, and the next items of all
users. Writes RESULTS.md beside this file, or into --out for another data set in --data with the same format. Steps
whose results are already in --out are skipped.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
DATA = "ml-latest-small"
ROOT = FOLDER.parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.movielens.rivals import pair_accuracies  # noqa: E402
from benchmarks.trained_models import (  # noqa: E402
    BIN,
    Scores,
    codebook_override,
    convert_once,
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

HELD_OUT = "0.15"
LOSSES = {
    "sigmoid DPO": ["loss.dpo_loss_type=sigmoid"],
    "S-DPO, several rejected": ["loss.dpo_loss_type=softmax"],
    "reference-free": ["loss.dpo_reference_free=true"],
}
NAMES = ("preference_accuracy", "recall@10", "ndcg@10", "hit_rate_l1@10", "hit_rate_l1_l2@10")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data" / DATA)
    parser.add_argument("--out", type=Path, default=Path("movielens-run"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=available_cpus(), help="parallel trainings, on one core each")
    arguments = parser.parse_args()
    if not has_data(arguments.data, "ratings.csv"):
        return 2
    data, out = arguments.data.resolve(), arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    prepare(data, out)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        before = list(pool.map(lambda seed: train_before(out, seed), arguments.seeds))
        after = {loss: [pool.submit(align, out, loss, seed) for seed in arguments.seeds] for loss in LOSSES}
    scores = {"before stage 3": before} | {loss: [one.result() for one in runs] for loss, runs in after.items()}
    accuracies = pair_accuracies(
        data / "ratings.csv",
        import_report(out)["columns"],
        out / "data/catalogue.jsonl",
        out / "data/validation_preference.jsonl",
    )
    scores |= {name: [{NAMES[0]: accuracy}] for name, accuracy in accuracies.items()}
    write_results(results(data.name, arguments.seeds, scores), FOLDER if data.name == DATA else out)
    return 0


def prepare(data: Path, out: Path) -> None:
    tables = [data / "ratings.csv", "--items", data / "movies.csv", "--only-seen-items", "--on-error", "skip"]
    rows = ["--min-rating", "4", "--held-out-users", HELD_OUT, "--max-history", "50"]
    pairs = ["--pairs-per-user", "all", "--rejected-per-chosen", "5", "--preference-window", "100"]
    import_once(out, [*tables, *rows, *pairs])
    for part in ("train", "validation", "test", "train_preference", "validation_preference"):
        convert_once(out, part, ["--max-positions", "64", "--max-target", "8"])


def train_before(out: Path, seed: int) -> Scores:
    """Trains stages 1 and 2, and evaluates the model before stage 3."""
    folder = out / f"seed{seed}"
    train(out, seed, 1, folder / "stage1", [], None)
    train(out, seed, 2, folder / "stage2", [], folder / "stage1/best")
    return evaluate(out, folder / "stage2/best", folder / "stage2/best")


def align(out: Path, loss: str, seed: int) -> Scores:
    """Trains stage 3 with one of its losses, and evaluates the model."""
    reference = out / f"seed{seed}/stage2/best"
    folder = out / f"seed{seed}/stage3-{loss.split()[0].strip(',').lower()}"
    train(out, seed, 3, folder, [*LOSSES[loss], f"loss.reference_from={reference}"], reference)
    return evaluate(out, folder / "latest", reference)


def train(out: Path, seed: int, stage: int, folder: Path, options: list[str], before: Path | None) -> None:
    mds = out / "mds"
    if stage == 3:
        streams = (
            f"[{{local: {mds / 'train_preference'}, proportion: 0.5}},{{local: {mds / 'train'}, proportion: 0.5}}]"
        )
        held_out = f"[{{local: {mds / 'validation'}}},{{local: {mds / 'validation_preference'}}}]"
        options = [*options, f"data.train.streams={streams}", f"data.eval.streams={held_out}"]
    else:
        options = [*options, f"data.train.local={mds / 'train'}", f"data.eval.local={mds / 'validation'}"]
    options += [f"seed={seed}", f"save_folder={folder}", f"data.catalogue={out / 'data/catalogue.jsonl'}"]
    options += [codebook_override(out), *([f"init_from={before}"] if before else [])]
    train_stage(stage, FOLDER, [*options, "loggers.progress_bar=false"])


def evaluate(out: Path, checkpoint: Path, reference: Path) -> Scores:
    report = checkpoint.parent / "held-out.json"
    if not report.exists():
        data = [word for part in ("test", "validation_preference") for word in ("--data", out / f"mds/{part}")]
        inputs = ["--checkpoint", checkpoint, "--reference", reference, *data, "--json", report]
        run([BIN / "ugt", "evaluate", *inputs, "--exclude-seen"])
    return json.loads(report.read_text())["metrics"]


def results(data: str, seeds: list[int], scores: dict[str, list[Scores]]) -> str:
    before = scores["before stage 3"]
    changes = {
        f"change by {loss}": [
            {name: new[name] - old[name] for name in NAMES} for new, old in zip(scores[loss], before, strict=True)
        ]
        for loss in LOSSES
    }
    lines = [
        f"# {data}: preference alignment",
        "",
        f"Written by `python benchmarks/movielens/run.py`: the mean over {seeds_in_words(seeds)}, ± their standard "
        "deviation. Pairs are those of users excluded from training; ranking metrics are for the next item of all "
        "users, among all films that they have not liked before. Two rows are baselines without a model: they order "
        "pairs by one number per film, computed from the training users.",
        "",
        *table(NAMES, scores | changes),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
