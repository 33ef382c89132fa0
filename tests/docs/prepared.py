"""The folder in which the commands of a page run: small data, small stages, and models trained with them.

It has the names that all pages use: the table of ratings, what the import and the conversion of docs/your-data.md make
of it, `data/mine` of the README, shipped YAMLs with small sizes, and a trained model of each stage.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars
import yaml

from tests.docs.pages import ROOT
from ugt_composer.config.load import config_yaml, load_config

SIZES: dict[str, Any] = {
    "global_train_batch_size": 32,
    "device_train_microbatch_size": 16,
    "eval_interval": "3ba",
    "save_interval": "3ba",
    "log_interval": "1ba",
    "model": {
        "d_model": 32,
        "n_heads": 2,
        "n_encoder_layers": 1,
        "n_decoder_layers": 1,
        "d_ff": 32,
        "max_seq_len": 64,
        "num_experts": 4,
        "top_k_experts": 2,
    },
    "data": {"train": {"num_workers": 0}},
    "parallelism": {"activation_checkpointing": False},
}
GENRES = ["Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Drama", "Fantasy", "Romance", "Thriller"]
USERS, MOVIES = 70, [1, 3, 6, 50, 260, 318, *range(1000, 1074)]
CODEBOOKS = "128 320 9792"  # of the pages' data set
SPLITS = ["train", "validation", "test", "train_preference", "validation_preference"]


def prepare(folder: Path) -> None:
    """Makes the folder, in about two minutes."""
    for name in (
        "convert",
        "benchmarks",
        "examples",
        "docs",
    ):  # copies, because pages show, and so write, some
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "rounds.py"):
        shutil.copy(ROOT / name, folder / name)
    small_yamls(folder / "yamls")
    write_tables(folder)
    run("ugt import ratings.csv --items movies.csv --min-rating 4 --max-history 50 --out data/movies", folder)
    run("ugt import ratings.csv --items movies.csv --min-rating 4 --to mds --out data/mine", folder)
    for split in SPLITS:
        kind = "preference" if "preference" in split else "recommend"
        run(
            f"ugt convert data/movies/{split}.jsonl --kind {kind} --codebook-sizes {CODEBOOKS} --out mds/{split}",
            folder,
        )
    for file in (folder / "data/movies").iterdir():  # as if it had been imported to data/
        shutil.copy(file, folder / "data" / file.name)
    for copy, original in (("eval", "validation"), ("preference", "train_preference")):
        shutil.copytree(folder / "mds" / original, folder / "mds" / copy)
    shutil.copytree(folder / "mds/validation_preference", folder / "mds/preference_eval")
    for stage in (1, 2, 3):
        more = " data/movies/preferences.yaml" * (stage == 3)
        run(f"python train.py yamls/stage{stage}.yaml data/movies/data.yaml{more}", folder)


def small_yamls(folder: Path) -> None:
    """The shipped YAMLs with small sizes and six batches."""
    folder.mkdir()
    for path in (ROOT / "yamls").glob("*.yaml"):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.name == "rounds.yaml":
            settings |= {"rounds": 1}
        elif path.name.startswith("stage"):
            settings = yaml.safe_load(config_yaml(load_config(path)))
            settings |= {"max_duration": "6ba", "save_best_if": None}
        if path.name != "rounds.yaml":
            settings = merged(settings, SIZES)
        (folder / path.name).write_text(yaml.safe_dump(settings, sort_keys=False))


def merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    changed = {
        key: merged(settings.get(key) or {}, value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return {**settings, **changed}


def write_tables(folder: Path) -> None:
    """ratings.csv and movies.csv with the columns of MovieLens, and histories for recommendations."""
    random = np.random.default_rng(0)
    with (folder / "movies.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["movieId", "title", "genres"])
        for place, movie in enumerate(MOVIES):
            genres = sorted({GENRES[place % 10], GENRES[random.integers(10)]})
            writer.writerow([movie, f"Movie {movie} ({1950 + place})", "|".join(genres)])
    with (folder / "ratings.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["userId", "movieId", "rating", "timestamp"])
        for user in range(1, USERS + 1):
            time = 946_684_800 + int(random.integers(10**8))
            for place in random.permutation(len(MOVIES))[: random.integers(25, 45)]:
                time += int(random.integers(60, 10**6))
                writer.writerow([user, MOVIES[place], random.choice([1, 2, 3, 4, 4.5, 5]), time])
    with (folder / "new_movies.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["movieId", "title", "genres"])
        writer.writerows([[2000 + n, f"New movie {n} (2024)", GENRES[n]] for n in range(4)])
    users = [{"user_id": name, "items": ["1", "318"]} for name in ("anna", "ben", "carla")]
    (folder / "user.json").write_text(json.dumps(users[0]))
    (folder / "users.jsonl").write_text("".join(json.dumps(user) + "\n" for user in users))
    rows = [(user["user_id"], item, place) for user in users for place, item in enumerate(user["items"])]
    polars.DataFrame(rows, schema=["user_id", "item_id", "time"], orient="row").write_parquet(folder / "users.parquet")


def run(script: str, folder: Path) -> str:
    """Runs commands with bash and returns what they print. AssertionError, with the output, if one fails.

    Those that install, or that have targets of their own, are left out: make, pip, source. Codebook sizes are those of
    the small import, which are not those that pages show.
    """
    if (facts := folder / "data/movies/data.yaml").exists():
        sizes = " ".join(map(str, yaml.safe_load(facts.read_text())["model"]["codebook_sizes"]))
        script = script.replace(CODEBOOKS, sizes)
    left_out = "".join(f"{name}() {{ :; }}; " for name in ("make", "pip", "source", "deactivate"))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }
    command = ["bash", "-euo", "pipefail", "-c", left_out + script]
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{script}\nexit status {done.returncode}\n{done.stdout[-4000:]}"
    return done.stdout
