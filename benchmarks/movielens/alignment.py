"""What stage 3 trades on several data sets: preference pairs gained, and ndcg of the next item lost.

    python benchmarks/movielens/alignment.py [--data DIR] [--out DIR] [--sets NAME …] [--batches 60]

Makes data sets of different sizes: ml-latest-small, half of its users, its films with 30 ratings or more, its first
half in time, and generated customers. Trains a tiny model with stages 1 and 2 on each, and aligns it with each of a few
settings, which are the same for all data sets. The model is the last one or, where `save_best_if` is set, the one in
`best/`, which has the most pairs right of the evaluations within the limit. It is measured on the rows that selected it
and on others, which did not (held_out.py). Trainings and measurements whose results are in --out are skipped. Writes
ALIGNMENT.md beside this file, or into --out if not all data sets are compared or --data is another one.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import polars as pl

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
DATA = ROOT.parent / "shared/data/ml-latest-small"
sys.path.insert(0, str(ROOT))

from benchmarks.movielens import run as movielens  # noqa: E402
from benchmarks.movielens.held_out import change, measure, write_parts  # noqa: E402
from benchmarks.trained_models import codebook_override, convert_once, has_data  # noqa: E402

SEED = 1
PARTS = ("select", "report")
SELECTING, REPORTING = (400, 700), (3000, 2000)  # recommend and preference rows, at most
LENGTHS = ["--max-positions", "64", "--max-target", "8"]
DPO, NO_CONDITION = "loss.dpo_loss_type", ["loss.lambda_anchor=0", "save_best_if=null"]
SETTINGS = {
    "sigmoid, λ2 .1, lr 1e-5": ["loss.lambda_preference=0.1", f"{DPO}=sigmoid", *NO_CONDITION, "optimizer.lr=1e-5"],
    "S-DPO, λ2 5, lr 5e-4": ["loss.lambda_preference=5", f"{DPO}=softmax", *NO_CONDITION, "optimizer.lr=5e-4"],
    "yamls/stage3.yaml": [],
    "yamls/stage3.yaml, lr 5e-4": ["optimizer.lr=5e-4"],
    "the same with S-DPO, λ2 5": ["loss.lambda_preference=5", f"{DPO}=softmax", "optimizer.lr=5e-4"],
}


def half_of_the_users(ratings: pl.DataFrame) -> pl.DataFrame:
    return ratings.filter(pl.col("userId") % 2 == 0)


def popular_films(ratings: pl.DataFrame) -> pl.DataFrame:
    return ratings.filter(pl.len().over("movieId") >= 30)


def first_half_of_time(ratings: pl.DataFrame) -> pl.DataFrame:
    return ratings.filter(pl.col("timestamp") < ratings["timestamp"].median())


MOVIELENS: dict[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    "popular": popular_films,
    "half-users": half_of_the_users,
    "first-half": first_half_of_time,
    "full": lambda ratings: ratings,
}
GENERATED = {"generated": ["--users", "8000"], "generated-small": ["--users", "2000", "--eval-users", "800"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=Path("alignment-run"))
    parser.add_argument("--sets", nargs="+", choices=[*MOVIELENS, *GENERATED], default=[*MOVIELENS, *GENERATED])
    parser.add_argument("--batches", type=int, default=60, help="of stage 3, of 64 rows each")
    arguments = parser.parse_args()
    if not (set(arguments.sets) <= set(GENERATED) or has_data(arguments.data, "ratings.csv")):
        return 2
    lines = ["| data | setting | pairs, selecting | ndcg@10, selecting | pairs, others | ndcg@10, others |"]
    lines.append("|---|---|---|---|---|---|")
    for name in arguments.sets:
        out = arguments.out.resolve() / name
        prepare(name, out, arguments.data.resolve())
        for setting, options in SETTINGS.items():
            model = align(out, setting, options, arguments.batches)
            cells = [cell for part in PARTS for cell in compared(out, model, part)]
            lines.append(f"| {name} | {setting} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    is_whole = arguments.sets == [*MOVIELENS, *GENERATED] and arguments.data == DATA
    path = (FOLDER if is_whole else arguments.out) / "ALIGNMENT.md"
    path.write_text("\n".join([*about(arguments.batches), *lines]) + "\n", "utf-8")
    print(f"written: {path}")
    return 0


def about(batches: int) -> list[str]:
    return [
        "# What stage 3 trades",
        "",
        f"Written by `python benchmarks/movielens/alignment.py`: one seed, {batches} batches of 64 rows, without seen "
        f"items. The settings are the same for all data sets. Without `save_best_if` the last model, with it `best/`, "
        f"selected by its pairs with at most {SELECTING[0]} recommend and {SELECTING[1]} preference rows. The others, "
        f"at most {REPORTING[0]} and {REPORTING[1]}, select nothing. ± is the standard error over these rows.",
        "",
    ]


def compared(out: Path, model: Path, part: str) -> tuple[str, str]:
    """How pairs and ndcg@10 of a part's rows have changed since the model before stage 3."""
    before, after = measure(out / f"seed{SEED}/stage2/best", out, part), measure(model, out, part)
    relative, error = change(before.ndcg, after.ndcg)
    return (
        f"{before.pairs:.4f} → {after.pairs:.4f}",
        f"{mean(before.ndcg):.4f} → {mean(after.ndcg):.4f}, {100 * relative:+.1f} ± {100 * error:.1f} %",
    )


def prepare(name: str, out: Path, data: Path) -> None:
    """Rows, shards, and the model before stage 3."""
    (out / "source").mkdir(parents=True, exist_ok=True)
    if name in MOVIELENS:
        if not (out / "source/movies.csv").exists():
            MOVIELENS[name](pl.read_csv(data / "ratings.csv")).write_csv(out / "source/ratings.csv")
            shutil.copy(data / "movies.csv", out / "source/movies.csv")
        movielens.prepare(out / "source", out)
    elif not (out / "mds/validation/index.json").exists():
        make_generated(out, GENERATED[name])
    if not (out / "data/report_preference.jsonl").exists():
        write_parts(out / "data", SELECTING, REPORTING)
    for part in PARTS:
        convert_once(out, part, LENGTHS)
        convert_once(out, f"{part}_preference", LENGTHS)
    folder = out / f"seed{SEED}"
    movielens.train(out, SEED, 1, folder / "stage1", ["max_duration=12ep", "eval_interval=2ep"], None)
    movielens.train(out, SEED, 2, folder / "stage2", ["max_duration=4ep"], folder / "stage1/best")


def make_generated(out: Path, options: list[str]) -> None:
    """The demo's data under the names of an import."""
    command = [sys.executable, ROOT / "convert/make_demo_data.py", "--out", out / "data", "--overwrite", *options]
    subprocess.run([str(word) for word in command], check=True)
    sizes = json.loads((out / "data/facts.json").read_text())["codebook_sizes"]
    (out / "data/report.json").write_text(json.dumps({"codebook_sizes": sizes}))
    names = {"preference_train": "train_preference", "eval": "validation", "preference_eval": "validation_preference"}
    for old, new in names.items():
        (out / f"data/{old}.jsonl").rename(out / f"data/{new}.jsonl")
    for part in ("train", "train_preference", "validation"):
        convert_once(out, part, LENGTHS)


def align(out: Path, setting: str, options: list[str], batches: int) -> Path:
    """Trains stage 3. Returns the model that it gives."""
    from ugt_composer.config.load import load_config
    from ugt_composer.training.build import build_trainer

    number, before, mds = list(SETTINGS).index(setting), out / f"seed{SEED}/stage2/best", out / "mds"
    folder = out / f"seed{SEED}/align{number}-{batches}"
    streams = f"[{{local: {mds / 'train_preference'}, proportion: 0.5}},{{local: {mds / 'train'}, proportion: 0.5}}]"
    overrides = [
        f"data.train.streams={streams}",
        f"data.eval.streams=[{{local: {mds / 'select'}}},{{local: {mds / 'select_preference'}}}]",
        f"data.catalogue={out / 'data/catalogue.jsonl'}",
        codebook_override(out),
        f"init_from={before}",
        f"loss.reference_from={before}",
        f"save_folder={folder}",
        f"seed={SEED}",
        f"max_duration={batches}ba",
        f"eval_interval={batches // 3}ba",
        "save_best_on=preference_accuracy",
        "global_train_batch_size=64",
        "device_train_microbatch_size=64",
        "data.train.num_workers=0",
        "evaluation.exclude_seen=true",
        "loggers.progress_bar=false",
    ]
    yamls = [str(ROOT / "yamls/stage3.yaml"), str(ROOT / "benchmarks/movielens/model.yaml")]
    config = load_config(*yamls, overrides=[*overrides, *options])
    trainer = build_trainer(config)
    trainer.train()
    trainer.close()
    return folder / ("latest" if config.save_best_if is None else "best")


if __name__ == "__main__":
    sys.exit(main())
