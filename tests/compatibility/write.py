"""Writes the run that `test_compatibility.py` resumes and loads: `python tests/compatibility/write.py FOLDER`.

FOLDER/
  catalogue.jsonl, mds/train, mds/eval   data
  config.yaml                            of the run; its paths are relative to FOLDER
  run/                                   save_folder after the first of two epochs: a checkpoint, latest/ and best/
  expected.json                          losses of the second epoch, evaluation of run/latest, ten recommendations

The folders here were written by the version in their names. They are never written again: a later version has to read
what an earlier one wrote.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from ugt_composer import build_trainer, load_config
from ugt_composer.data.history import decoder_lists, encoder_lists

ROOT = Path(__file__).resolve().parents[2]
ITEMS = 30
SIZES = (8, 16, 40)
CONFIG = f"""\
run_name: compatibility
seed: 7
save_folder: run
max_duration: 2ep
global_train_batch_size: 16
device_train_microbatch_size: 8
device_eval_batch_size: 8
precision: fp32
eval_interval: 4ba
save_interval: 2ba
log_interval: 1ba
save_num_checkpoints_to_keep: 1
model: {{d_model: 16, n_heads: 2, n_encoder_layers: 1, n_decoder_layers: 1, d_ff: 16, max_seq_len: 16,
        codebook_sizes: {list(SIZES)}, num_experts: 2, top_k_experts: 1}}
loss: {{lambda_contrastive: 0.1, num_negatives: 8}}
optimizer: {{lr: 1.0e-2}}
scheduler: {{t_warmup: 2ba, max_warmup_ratio: 1.0}}
data:
  catalogue: catalogue.jsonl
  train: {{local: mds/train, num_workers: 0}}
  eval: {{local: mds/eval}}
evaluation: {{k_values: [5, 10], beam_width: 20}}
loggers: {{progress_bar: false}}
"""
HISTORY = [f"item-{number}" for number in (3, 4, 6, 7)]


def item(number: int) -> tuple[int, int, int]:
    return 5 + number // 12, 5 + number // 4, 5 + number


def write_rows(path: Path, rows: int, seed: int) -> None:
    """Histories that walk through the items in steps of one or two."""
    random = np.random.default_rng(seed)
    lines = []
    for user in range(rows):
        steps = random.integers(1, 3, random.integers(3, 9))
        walk = [item(int(place) % ITEMS) for place in random.integers(ITEMS) + steps.cumsum()]
        row = {"user_id": f"u{user}", **encoder_lists(walk[:-1]), **decoder_lists(walk[-1:])}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    os.chdir(folder)
    Path("config.yaml").write_text(CONFIG)
    triples = [dict(zip(("l1_id", "l2_id", "l3_id"), item(number), strict=True)) for number in range(ITEMS)]
    lines = [json.dumps({"item_id": f"item-{number}", **triple}) + "\n" for number, triple in enumerate(triples)]
    Path("catalogue.jsonl").write_text("".join(lines))
    for seed, (name, rows) in enumerate([("train", 64), ("eval", 16)]):
        write_rows(Path(f"{name}.jsonl"), rows, seed)
        convert = [sys.executable, ROOT / "convert/jsonl_to_mds.py", f"{name}.jsonl", "--kind", "recommend"]
        options = ["--out", f"mds/{name}", "--codebook-sizes", *map(str, SIZES), "--max-positions", "16"]
        subprocess.run([*convert, *options], check=True)
        Path(f"{name}.jsonl").unlink()
    trainer = build_trainer(load_config("config.yaml"))
    trainer.train_epoch()
    first_epoch = trainer.state.timestamp.batch.value
    evaluation = trainer.evaluate()
    trainer.close()
    shutil.copytree("run", "after_one_epoch")
    trainer = build_trainer(load_config("config.yaml"))
    trainer.train()
    trainer.close()
    metrics = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = {
        line["batch"]: line["loss/train/total"]
        for line in metrics
        if line["batch"] > first_epoch and "loss/train/total" in line
    }
    shutil.rmtree("run")
    Path("after_one_epoch").rename("run")
    expected = {"losses": losses, "evaluation": evaluation, "recommended": recommend("run/latest")}
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def recommend(model: str) -> list[dict]:
    """Ten items for HISTORY, best first, as `ugt recommend` writes them."""
    Path("history.json").write_text(json.dumps({"items": HISTORY}))
    ugt = [Path(sys.executable).parent / "ugt", "recommend", "--checkpoint", model, "--history", "history.json"]
    ran = subprocess.run([*ugt, "-k", "10", "--json"], check=True, capture_output=True, text=True)
    Path("history.json").unlink()
    return json.loads(ran.stdout)["recommendations"]


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
