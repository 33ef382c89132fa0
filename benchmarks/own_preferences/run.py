"""Preferences of a model's own lists: no stage 3, DPO, S-DPO, rounds and GRPO compared, on Beauty or MovieLens.

    python benchmarks/own_preferences/run.py beauty [--data DIR] [--out DIR] [--seeds 1 2 3] [--rounds 3]
    python benchmarks/own_preferences/run.py movielens [--data DIR] [--out DIR] [--limit 20000] [--set max_duration=9ba]

Trains the models before stage 3 as benchmarks/amazon_beauty or benchmarks/movielens do, then stage 3 by rounds.py:

    DPO         one round, sigmoid loss, one rejected item: the model's best other one
    S-DPO       one round, softmax loss, --rejected items; the first of the rounds below
    rounds      up to --rounds rounds of S-DPO; what validation does not keep is left out
    GRPO        no pairs: as many batches of recommend rows with `loss.preference_objective: group`, see group.yaml

For DPO, S-DPO and GRPO the model after the last batch is evaluated, kept or not. GRPO needs softmaxes over the
catalogue's ids, so all models have them. All figures are for the test items, with those of the history excluded;
choices are made on the validation items. Writes RESULTS-DATASET.md beside this file, or into --out with --set, --limit
or another data set. Steps whose results are already in --out are skipped.
"""

import argparse
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.amazon_beauty import run as beauty  # noqa: E402
from benchmarks.movielens import run as movielens  # noqa: E402
from benchmarks.trained_models import (  # noqa: E402
    BIN,
    Scores,
    codebook_override,
    fast_precision,
    has_data,
    run,
    seeds_in_words,
    table,
)

NAMES = ("ndcg@10", "recall@10")
DATA = {"beauty": "amazon_beauty", "movielens": "ml-latest-small"}
FILES = {"beauty": "sequences.txt", "movielens": "ratings.csv"}
MODELS = {"beauty": ["model.yaml", "stage2.yaml"], "movielens": ["model.yaml"]}
LIMIT = 40_000  # a round of 300 batches on Beauty reads 38,400 pairs
OVER_CATALOGUE = "model.level_softmax=catalogue"
FOLDERS = {"beauty": beauty.FOLDER, "movielens": movielens.FOLDER}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=DATA)
    parser.add_argument("--data", type=Path, help="default: shared/data beside the project's folder")
    parser.add_argument("--out", type=Path, help="default: DATASET-own-preferences")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rejected", type=int, default=20)
    parser.add_argument("--limit", type=int, default=LIMIT, help=f"rows that pairs are made of (default: {LIMIT:,})")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of stage 3")
    arguments = parser.parse_args()
    data = (arguments.data or ROOT.parent / "shared/data" / DATA[arguments.dataset]).resolve()
    out = (arguments.out or Path(f"{arguments.dataset}-own-preferences")).resolve()
    if not has_data(data, FILES[arguments.dataset]):
        return 2
    out.mkdir(parents=True, exist_ok=True)
    (beauty if arguments.dataset == "beauty" else movielens).prepare(data, out)
    names = ("no stage 3", "DPO", "S-DPO", f"{arguments.rounds} rounds", "GRPO")
    scores: dict[str, list[Scores]] = {name: [] for name in names}
    for seed in arguments.seeds:
        start = before(arguments.dataset, out, seed)
        models = [*aligned(arguments, out, seed, start), grouped(arguments, out, seed, start)]
        for name, model in zip(scores, [start, *models], strict=True):
            scores[name].append(evaluate(out, model))
    own = not arguments.set and arguments.limit == LIMIT and data.name == DATA[arguments.dataset]
    path = (FOLDER if own else out) / f"RESULTS-{arguments.dataset}.md"
    path.write_text(results(arguments, data, scores), "utf-8")
    print(path.read_text("utf-8"))
    return 0


def before(dataset: str, out: Path, seed: int) -> Path:
    """The model that stage 3 begins with."""
    if dataset == "beauty":
        beauty.train(out, seed)
    else:
        folder = out / f"seed{seed}"
        movielens.train(out, seed, 1, folder / "stage1", [OVER_CATALOGUE], None)
        movielens.train(out, seed, 2, folder / "stage2", [OVER_CATALOGUE], folder / "stage1/best")
    return out / f"seed{seed}/stage2/best"


def aligned(arguments: argparse.Namespace, out: Path, seed: int, start: Path) -> list[Path]:
    """The models of DPO, S-DPO and rounds."""
    folder = out / f"seed{seed}"
    runs = {"dpo": (1, 1, "sigmoid"), "rounds": (arguments.rounds, arguments.rejected, "softmax")}
    for name, (rounds, rejected, loss) in runs.items():
        yamls, overrides = stage_settings(arguments, out, seed, [f"loss.dpo_loss_type={loss}"])
        words = {
            "save_folder": folder / name,
            "init_from": start,
            "rounds": rounds,
            "data": json.dumps([str(out / "mds/train")]),
            "validation": json.dumps([str(out / "mds/validation")]),
            "stage": json.dumps([str(path) for path in [*yamls, FOLDER / "stage3.yaml"]]),
            "overrides": json.dumps(overrides),
            "composer": '["-n", "1"]',
            "seed": seed,
            "preferences.rejected": rejected,
            "preferences.limit": arguments.limit,
        }
        settings = [f"{key}={value}" for key, value in words.items()]
        run([sys.executable, ROOT / "rounds.py", ROOT / "yamls/rounds.yaml", *settings])
    return [folder / "dpo/round-1/run/latest", folder / "rounds/round-1/run/latest", folder / "rounds/best"]


def grouped(arguments: argparse.Namespace, out: Path, seed: int, start: Path) -> Path:
    """The model that is trained on groups of its own items."""
    folder = out / f"seed{seed}/grpo"
    data = ["data.train.streams=[]", f"data.train.local={out / 'mds/train'}"]
    data += ["data.eval.streams=[]", f"data.eval.local={out / 'mds/validation'}"]
    models = [f"init_from={start}", f"loss.reference_from={start}", f"save_folder={folder}"]
    yamls, overrides = stage_settings(arguments, out, seed, [*data, *models])
    yamls += [FOLDER / "stage3.yaml", FOLDER / "group.yaml"]
    run([BIN / "composer", "-n", "1", ROOT / "train.py", *yamls, *overrides])
    return folder / "latest"


def stage_settings(
    arguments: argparse.Namespace, out: Path, seed: int, more: list[str]
) -> tuple[list[Path], list[str]]:
    """YAML files, to which those of this folder are added, and overrides of a stage 3."""
    yamls = [ROOT / "yamls/stage3.yaml", *(FOLDERS[arguments.dataset] / y for y in MODELS[arguments.dataset])]
    overrides = [
        f"seed={seed}",
        f"precision={fast_precision()}",
        codebook_override(out),
        f"data.catalogue={out / 'data/catalogue.jsonl'}",
        OVER_CATALOGUE,
        "evaluation.exclude_seen=true",
        "loggers.progress_bar=false",
        *more,
        *arguments.set,
    ]
    return yamls, overrides


def evaluate(out: Path, model: Path) -> Scores:
    """Scores on the test items."""
    report = model.parent / f"test-{model.name}.json"
    if not report.exists():
        inputs = ["--checkpoint", model, "--data", out / "mds/test", "-k", "10", "--beam-width", "50"]
        run([BIN / "ugt", "evaluate", *inputs, "--exclude-seen", "--json", report])
    return json.loads(report.read_text())["metrics"]


def results(arguments: argparse.Namespace, data: Path, scores: dict[str, list[Scores]]) -> str:
    first = scores["no stage 3"]
    changes = {
        f"change by {name}": [{n: new[n] - old[n] for n in NAMES} for new, old in zip(runs, first, strict=True)]
        for name, runs in scores.items()
        if runs is not first
    }
    lines = [
        f"# {data.name}: preferences of the model's own lists",
        "",
        f"Written by `python benchmarks/own_preferences/run.py {arguments.dataset}`: test items, those of the history "
        f"excluded; the mean over {seeds_in_words(arguments.seeds)}, ± their standard deviation.",
        "",
        *table(NAMES, scores | changes),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
