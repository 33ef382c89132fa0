"""MovieLens (ml-latest-small): the effect of actions (ratings) and times in the histories.

    python benchmarks/movielens/signals.py [--data DIR] [--out DIR] [--seeds 1 2 3] [--jobs 2] [--models NAME …]

The same split, targets, pairs, seeds and steps for every model; they differ in what the histories hold (liked films, or
all that the user rated), and in what the model reads beside the films: ratings, times, and a relative time bias.
Stage 3 is S-DPO. Evaluates as run.py does. Films of the history are not recommended, so a model whose histories hold
all rated films also chooses among fewer: compare the rows of one kind of history with each other. Writes SIGNALS.md
beside this file, or into --out for another data set in --data with the same format. Steps whose results are already in
--out are skipped.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent
DATA = "ml-latest-small"
ROOT = FOLDER.parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.movielens.run import HELD_OUT, NAMES, evaluate, train  # noqa: E402
from benchmarks.trained_models import (  # noqa: E402
    Scores,
    convert_once,
    has_data,
    import_once,
    seeds_in_words,
    table,
    write_results,
)
from ugt_composer.job.cpus import available_cpus  # noqa: E402

MAX_HISTORY = 100  # films, so that the liked ones among all rated ones are about as many as run.py reads
TIMES, BIAS = ["model.time_buckets=32"], ["model.relative_time_bias=true"]


class Model(NamedTuple):
    """What a model's histories hold, the importer's --history; and what the model reads beside the films."""

    history: str
    title: str
    reads_ratings: bool = False
    options: tuple[str, ...] = ()


MODELS = {
    "liked": Model("positive", "liked films"),
    "liked-times": Model("positive", "liked films, times", options=(*TIMES,)),
    "all": Model("all", "all rated films"),
    "all-ratings": Model("all", "all rated films, ratings", reads_ratings=True),
    "all-times": Model("all", "all rated films, times", options=(*TIMES,)),
    "all-both": Model("all", "all rated films, ratings, times", True, (*TIMES,)),
    "all-both-bias": Model("all", "all rated films, ratings, times, time bias", True, (*TIMES, *BIAS)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data" / DATA)
    parser.add_argument("--out", type=Path, default=Path("movielens-signals"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=available_cpus(), help="parallel trainings, on one core each")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument(
        "--durations", nargs=3, metavar="TIME", help="of the three stages, such as 2ep 1ep 20ba (default: as in run.py)"
    )
    arguments = parser.parse_args()
    if not has_data(arguments.data, "ratings.csv"):
        return 2
    data, out = arguments.data.resolve(), arguments.out.resolve()
    for history in {MODELS[name].history for name in arguments.models}:
        prepare(data, out / history, history)
    durations = arguments.durations or [None] * 3
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = {
            name: [pool.submit(train_and_evaluate, out, name, seed, durations) for seed in arguments.seeds]
            for name in arguments.models
        }
        scores = {name: [run.result() for run in of_model] for name, of_model in runs.items()}
    text = results(data.name, arguments.seeds, scores)
    is_default = data.name == DATA and arguments.durations is None
    write_results(text, FOLDER if is_default else out, "SIGNALS.md")
    return 0


def prepare(data: Path, out: Path, history: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tables = [data / "ratings.csv", "--items", data / "movies.csv", "--only-seen-items", "--on-error", "skip"]
    rows = ["--min-rating", "4", "--held-out-users", HELD_OUT, "--max-history", MAX_HISTORY, "--history", history]
    pairs = ["--pairs-per-user", "all", "--rejected-per-chosen", "5", "--preference-window", "100"]
    import_once(out, [*tables, *rows, *pairs])
    for part in ("train", "validation", "test", "train_preference", "validation_preference"):
        convert_once(out, part, ["--max-positions", 2 * MAX_HISTORY, "--max-target", "8"])


def train_and_evaluate(out: Path, name: str, seed: int, durations: Sequence[str | None]) -> tuple[Scores, Scores]:
    """Trains the three stages of a model, and evaluates it before and after the third."""
    model = MODELS[name]
    data, folder = out / model.history, out / f"models/{name}/seed{seed}"
    actions = len(json.loads((data / "data/actions.json").read_text())) if model.reads_ratings else 0
    options = [*model.options, f"model.num_actions={actions}", f"model.max_seq_len={2 * MAX_HISTORY}"]
    before: Path | None = None
    for stage, duration in enumerate(durations, start=1):
        of_stage = [*options, *([f"max_duration={duration}"] if duration else [])]
        if stage == 3:
            of_stage += ["loss.dpo_loss_type=softmax", f"loss.reference_from={before}"]
        train(data, seed, stage, folder / f"stage{stage}", of_stage, before)
        before = folder / f"stage{stage}/best"
    reference = folder / "stage2/best"
    return evaluate(data, reference, reference), evaluate(data, folder / "stage3/latest", reference)


def results(data: str, seeds: list[int], scores: dict[str, list[tuple[Scores, Scores]]]) -> str:
    lines = [
        f"# {data}: actions and times",
        "",
        f"Written by `python benchmarks/movielens/signals.py`: the mean over {seeds_in_words(seeds)}, ± their standard "
        "deviation. Pairs are those of users excluded from training; ranking metrics are for the next item of all "
        f"users, among all films that are not in their history. Histories hold at most {MAX_HISTORY} films; the models "
        "differ only in what these are and in what is read beside them.",
    ]
    for place, title in enumerate(("before stage 3", "after stage 3 (S-DPO)")):
        rows = {MODELS[name].title: [run[place] for run in runs] for name, runs in scores.items()}
        lines += ["", f"## {title}", "", *table(NAMES, rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
