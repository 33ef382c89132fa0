"""Claim: a dry run and the help text start quickly, compared with `import torch` alone.

python benchmarks/startup.py [--repetitions 5]
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.claims import Claim, in_turns, report  # noqa: E402
from tests.parity import make_data  # noqa: E402

UGT = Path(sys.executable).parent / "ugt"


def start(*command: object) -> None:
    subprocess.run([str(argument) for argument in command], check=True, capture_output=True, cwd=ROOT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    claims = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        make_data(out, seed=0, users=300)
        overrides = [f"data.train.local={out / 'mds/train'}", "data.eval.local=null", "data.catalogue=null"]
        dry_run = [sys.executable, "train.py", "yamls/stage1.yaml", "yamls/demo.yaml", *overrides, "--dry-run"]
        for name, command, target in (("train.py --dry-run", dry_run, 2.0), ("ugt --help", [UGT, "--help"], 0.3)):
            ratio, ours, rival = in_turns(
                lambda command=command: start(*command),  # type: ignore[misc]
                lambda: start(sys.executable, "-c", "import torch"),
                arguments.repetitions,
            )
            note = f"{ours:.1f} s and {rival:.1f} s"
            claims.append(Claim(name, "import torch", ratio, target, at_least=False, note=note))
    return report(__file__, claims)


if __name__ == "__main__":
    sys.exit(main())
