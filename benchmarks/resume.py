"""Claim: a run resumes as fast at 90 % of an epoch of a million rows as at its beginning.

Two processes alternately build the same trainer of a small model on the same data, set its position in the epoch like a
resumed run, and measure the time from there to the end of their first batch.

    python benchmarks/resume.py [--rows 1000000] [--repetitions 3]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.claims import Claim, report  # noqa: E402
from benchmarks.pipeline import many_rows  # noqa: E402
from tests.parity import make_data  # noqa: E402

BATCH = 256
FIRST_BATCH = """
import sys, time
sys.path.insert(0, sys.argv[1])
from composer import Callback
from composer.core import Timestamp
from ugt_composer.config.load import load_config
from ugt_composer.training.build import build_trainer

class Stop(Callback):
    def batch_end(self, state, logger):
        print("seconds", time.perf_counter() - started)
        state.stop_training()

if __name__ == "__main__":
    config = load_config(*sys.argv[4:6], overrides=sys.argv[6:])
    trainer = build_trainer(config)
    batch, size = int(sys.argv[2]), int(sys.argv[3])
    trainer.state.timestamp = Timestamp(
        batch=batch, batch_in_epoch=batch, sample=batch * size, sample_in_epoch=batch * size
    )
    trainer.state.callbacks.append(Stop())
    started = time.perf_counter()
    trainer.train()
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        make_data(out, seed=0, users=1500)
        many_rows(out / "many", arguments.rows, out / "mds/train")
        late = int(0.9 * arguments.rows) // BATCH
        pairs = [(first_batch(out, late), first_batch(out, 0)) for _ in range(arguments.repetitions)]
    more = statistics.median(at_late - at_start for at_late, at_start in pairs)
    at_late, at_start = (statistics.median(times) for times in zip(*pairs, strict=True))
    what = f"first batch after a restart at 90 % of {arguments.rows:,} rows: additional seconds"
    return report(
        __file__,
        [Claim(what, "a restart at 0 %", more, 2.0, at_least=False, note=f"{at_late:.1f} s and {at_start:.1f} s")],
    )


def first_batch(out: Path, batch: int) -> float:
    overrides = [
        f"data.train.local={out / 'many'}",
        f"data.catalogue={out / 'data/catalogue.jsonl'}",
        "data.eval.local=null",
        "data.eval.streams=[]",
        f"save_folder={out / 'run'}",
        "autoresume=false",
        f"global_train_batch_size={BATCH}",
        "device_train_microbatch_size=128",
        "max_duration=1ep",
        "loggers.progress_bar=false",
        "data.train.num_workers=1",
    ]
    yamls = [ROOT / "yamls/stage1.yaml", ROOT / "yamls/demo.yaml"]
    arguments = [ROOT, batch, BATCH, *yamls, *overrides]
    command = [sys.executable, "-c", FIRST_BATCH, *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return next(float(line.split()[1]) for line in output.splitlines() if line.startswith("seconds"))


if __name__ == "__main__":
    sys.exit(main())
