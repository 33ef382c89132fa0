"""Claim: a save interrupts training for a fraction of the time that torch.save takes for the same bytes.

Training stops while the checkpoint is copied; a background thread writes it, flushes, reads back and renames the file.
torch.save only writes the same content to a file on the same disk.

    python benchmarks/checkpoint.py [--repetitions 5]
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.claims import Claim, report, seconds  # noqa: E402
from tests.parity import make_data  # noqa: E402
from ugt_composer.checkpoint.run_checkpoints import read_checkpoint  # noqa: E402
from ugt_composer.checkpoint.save_folder import checkpoint_path  # noqa: E402
from ugt_composer.config.load import load_config  # noqa: E402
from ugt_composer.training.build import build_trainer  # noqa: E402
from ugt_composer.training.trainer import UGTTrainer  # noqa: E402

SIZE = ["model.d_model=512", "model.n_heads=8", "model.n_encoder_layers=4", "model.n_decoder_layers=2"]


def make_trainer(out: Path) -> UGTTrainer:
    overrides = [
        *SIZE,
        f"data.train.local={out / 'mds/train'}",
        f"data.catalogue={out / 'data/catalogue.jsonl'}",
        "data.eval.local=null",
        "data.eval.streams=[]",
        f"save_folder={out / 'run'}",
        "global_train_batch_size=8",
        "device_train_microbatch_size=8",
        "save_interval=1000000ba",
        "loggers.progress_bar=false",
        "data.train.num_workers=0",
    ]
    return build_trainer(load_config(ROOT / "yamls/stage1.yaml", ROOT / "yamls/demo.yaml", overrides=overrides))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        make_data(out, seed=0, users=300)
        trainer = make_trainer(out)
        trainer.fit(duration="1ba")  # so that the optimizer has its state
        saves, path = trainer.checkpoints, checkpoint_path(out / "run", 1)
        saves.save(trainer.state)
        saves.writer.finish()
        content = dict(read_checkpoint(path))
        stalls, rival_times = [], []
        for _ in range(arguments.repetitions):
            stalls.append(seconds(lambda: saves.save(trainer.state)))
            saves.writer.finish()
            rival_times.append(seconds(lambda: torch.save(content, out / "plain.pt")))
        size = path.stat().st_size
        trainer.close()
    ratio = statistics.median(stall / rival for stall, rival in zip(stalls, rival_times, strict=True))
    stall, rival = statistics.median(stalls), statistics.median(rival_times)
    note = f"{size / 1e6:.0f} MB: {1000 * stall:.0f} ms and {1000 * rival:.0f} ms"
    return report(
        __file__, [Claim("interruption of training by a save", "torch.save", ratio, 0.3, at_least=False, note=note)]
    )


if __name__ == "__main__":
    sys.exit(main())
