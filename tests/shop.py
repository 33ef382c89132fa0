"""A small shop in JSON Lines and shards, and runs of the shipped YAMLs over it."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ugt_composer.config.load import load_config
from ugt_composer.config.schema import Config
from ugt_composer.data.history import decoder_lists, encoder_lists
from ugt_composer.errors import exit_on_user_error
from ugt_composer.vocabulary import IGNORE_INDEX

ROOT = Path(__file__).resolve().parents[1]
SIZES = (24, 40, 72)
SMALL = (
    "model.d_model=32",
    "model.n_heads=2",
    "model.n_encoder_layers=1",
    "model.n_decoder_layers=1",
    "model.d_ff=32",
    "model.max_seq_len=32",
    f"model.codebook_sizes=[{','.join(map(str, SIZES))}]",
    "model.num_experts=4",
    "model.top_k_experts=2",
    "global_train_batch_size=32",
    "device_train_microbatch_size=16",
    "optimizer.lr=1e-2",
    "max_duration=2ep",
    "save_best_if=null",
    "eval_interval=5ba",
    "save_interval=3ba",
    "log_interval=1ba",
    "data.train.num_workers=0",
    "loggers.progress_bar=false",
)


def shop_item(number: int) -> tuple[int, int, int]:
    return 5 + number // 16, 5 + number // 4, 5 + number


def write_rows(path: Path, kind: str, rows: int, seed: int) -> None:
    """Writes histories that walk through the shop in steps of one or two, so that the next item can be learnt."""
    random = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for user in range(rows):
            steps = random.integers(1, 3, random.integers(4, 10))
            walk = [shop_item(int(place) % 60) for place in random.integers(60) + steps.cumsum()]
            if kind == "recommend":
                row = {"user_id": f"u{user}", **encoder_lists(walk[:-2]), **decoder_lists(walk[-2:])}
            else:
                items = [dict(zip(("l1_id", "l2_id", "l3_id"), item, strict=True)) for item in (walk[-1], walk[0])]
                row = {
                    "user_id": f"u{user}",
                    "user_sequence": encoder_lists(walk[:-1]),
                    "chosen_item": items[0],
                    "rejected_item": items[1],
                }
                if items[0] == items[1]:
                    continue
            file.write(json.dumps(row) + "\n")


def add_actions_and_times(path: Path, actions: int, seed: int) -> None:
    """Adds actions and times to the rows of a JSON Lines file."""
    random = np.random.default_rng(seed)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        history = row.get("user_sequence", row)
        steps = 2 ** random.integers(0, 25, len(history["encoder_mask"]))
        history["encoder_times"] = steps.cumsum().tolist()
        history["encoder_actions"] = [0, *random.integers(1, actions + 1, len(steps) - 1).tolist()]
        now = int(steps.sum() + 2 ** random.integers(0, 25))
        if history is not row:
            row["decoder_times"] = now
        elif IGNORE_INDEX not in row["labels_l1"]:
            row["decoder_times"] = [now] * len(row["decoder_mask"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def to_shards(folder: Path, name: str) -> None:
    """Converts the rows in folder/name.jsonl, whose kind is in their name, to shards in folder/name."""
    from convert.jsonl_to_mds import main as convert

    kind = "preference" if name.startswith("preference") else "recommend"
    options = ["--codebook-sizes", *map(str, SIZES), "--max-positions", "32"]
    assert convert([str(folder / f"{name}.jsonl"), "--kind", kind, "--out", str(folder / name), *options]) == 0


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> Path:
    """A folder with catalogue.jsonl and the shards train, eval, preference, preference_eval."""
    folder = tmp_path_factory.mktemp("shop")
    items = (
        {"item_id": f"item-{n}", **dict(zip(("l1_id", "l2_id", "l3_id"), shop_item(n), strict=True))} for n in range(60)
    )
    (folder / "catalogue.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    for seed, (name, kind, rows) in enumerate(
        [
            ("train", "recommend", 205),
            ("eval", "recommend", 41),
            ("preference", "preference", 130),
            ("preference_eval", "preference", 30),
        ]
    ):
        write_rows(folder / f"{name}.jsonl", kind, rows, seed)
        to_shards(folder, name)
    return folder


def without_catalogue(shop: Path, folder: Path) -> list[str]:
    """Overrides for copies of the rows `train` and `eval` that do not record their catalogue."""
    for name in ("train", "eval"):
        shutil.copytree(shop / name, folder / name)
        manifest = folder / name / "manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "catalogue": None}))
    return [f"data.train.local={folder / 'train'}", f"data.eval.streams=[{{local: {folder / 'eval'}}}]"]


def stage_arguments(shop: Path, out: Path, stage: int, previous: Path | None = None) -> list[str]:
    """Arguments of a run: a shipped YAML, and overrides that shrink it and point it to the shop."""
    arguments = [
        str(ROOT / f"yamls/stage{stage}.yaml"),
        *SMALL,
        f"save_folder={out}",
        f"data.catalogue={shop / 'catalogue.jsonl'}",
        "data.eval.local=null",
        f"data.eval.streams=[{{local: {shop / 'eval'}}},{{local: {shop / 'preference_eval'}}}]",
    ]
    if stage == 3:
        streams = f"[{{local: {shop / 'preference'}, proportion: 0.5}},{{local: {shop / 'train'}, proportion: 0.5}}]"
        arguments.append(f"data.train.streams={streams}")
        arguments.append(f"loss.reference_from={previous}")
    else:
        arguments.append(f"data.train.local={shop / 'train'}")
    if stage > 1:
        arguments.append(f"init_from={previous}")
    return arguments


@pytest.fixture
def stage_config(shop):
    """stage_config(out, stage, previous, *overrides) → the resolved config of a small run."""

    def load(out: Path, stage: int = 1, previous: Path | None = None, *overrides: str) -> Config:
        path, *rest = stage_arguments(shop, out, stage, previous)
        return load_config(path, overrides=[*rest, *overrides])

    return load


@pytest.fixture(scope="session")
def stages(shop, tmp_path_factory) -> Path:
    """A folder with stage1, stage2 and stage3, trained one from the other."""
    from ugt_composer.training.build import build_trainer

    folder = tmp_path_factory.mktemp("stages")
    for stage in (1, 2, 3):
        path, *rest = stage_arguments(shop, folder / f"stage{stage}", stage, folder / f"stage{stage - 1}" / "best")
        trainer = build_trainer(load_config(path, overrides=rest))
        trainer.train()
        trainer.close()
    return folder


@pytest.fixture
def ended(monkeypatch, capsys):
    """ended(main, stdin) → exit status and output of a program with this `main`, run in this process."""

    def run(main: Callable[[], object], stdin: str = "") -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            exit_on_user_error(main)
        return subprocess.CompletedProcess([], end.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def module_in_cwd(tmp_path, monkeypatch):
    """module_in_cwd(name, text) → the import path of a new module in the working directory, which is tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name: str, text: str) -> str:
        name = f"{name}_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def comparable(folder: Path) -> list[dict]:
    """The metrics of a run without the values that depend on time."""
    return [{k: v for k, v in line.items() if not k.endswith("samples/s")} for line in metrics_of(folder)]
