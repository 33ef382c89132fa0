"""Claim: an import with `--to mds` takes less time than an import to JSON Lines and the conversions that it prints,
needs at most half of their disk, and 200 MB more memory than the import alone. The shards are the same, byte for byte.

Interactions are those of importing.py. Each program is a process of its own, with one thread for its arithmetic.

    python benchmarks/import_to_mds.py [--interactions 500000] [--repetitions 1]
"""

import argparse
import datetime
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.claims import Claim, in_turns, report  # noqa: E402
from benchmarks.importing import write_interactions  # noqa: E402

IMPORT = "convert/interactions_to_jsonl.py"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(folder: Path, *words: str) -> tuple[str, int]:
    """Runs one of the programs in a folder. Returns what it printed, and its peak memory in bytes."""
    command = [sys.executable, str(ROOT / words[0]), *words[1:]]
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, printed
    return printed, usage.ru_maxrss * 1024


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def shards(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.glob("*/*"))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=500_000)
    parser.add_argument("--repetitions", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        ours, rival = Path(name) / "ours", Path(name) / "rival"
        for folder in (ours, rival):
            folder.mkdir()
            write_interactions(folder / "ratings.csv", arguments.interactions)
        peaks: dict[str, int] = {}

        def to_mds() -> None:
            _, peaks["mds"] = run(ours, IMPORT, "ratings.csv", "--out", "out", "--overwrite", "--to", "mds")

        def by_way_of_files() -> None:
            shutil.rmtree(rival / "mds", ignore_errors=True)
            printed, peaks["jsonl"] = run(rival, IMPORT, "ratings.csv", "--out", "out", "--overwrite")
            for command in re.findall(r"^  python (convert/jsonl_to_mds.py .*)$", printed, re.MULTILINE):
                run(rival, *shlex.split(command))

        ratio, our_seconds, rival_seconds = in_turns(to_mds, by_way_of_files, arguments.repetitions)
        same = shards(ours / "out") == shards(rival / "mds")
        our_bytes, rival_bytes = size(ours / "out"), size(rival / "out") + size(rival / "mds")
    date = datetime.datetime.now(datetime.UTC).date()
    seconds = f"{arguments.interactions:,} interactions, {date}: {our_seconds:.0f} s and {rival_seconds:.0f} s"
    megabytes = f"{our_bytes / 1e6:,.0f} MB and {rival_bytes / 1e6:,.0f} MB"
    more = peaks["mds"] - peaks["jsonl"]
    memory = f"{peaks['mds'] / 1e6:,.0f} MB and {peaks['jsonl'] / 1e6:,.0f} MB"
    steps, what = "import to JSON Lines, then conversion", "import --to mds:"
    claims = [
        Claim(f"{what} time", steps, ratio, 1.0, at_least=False, note=seconds),
        Claim(f"{what} disk", steps, our_bytes / rival_bytes, 0.5, at_least=False, note=megabytes),
        Claim(f"{what} MB of memory more than to JSON Lines", "200 MB", more / 1e6, 200, at_least=False, note=memory),
        Claim(f"{what} folders that differ", steps, float(not same), 0.0, at_least=False),
    ]
    return report(__file__, claims)


if __name__ == "__main__":
    sys.exit(main())
