"""Claim: an import with `--to mds` takes no more CPU time (a tenth is allowed for noise) than an import to JSON Lines
and the conversions that it prints, at most half of their disk, and 200 MB more memory than the import alone. The shards
are the same, byte for byte.

Interactions are those of importing.py. Each program is a process of its own, with one thread for its arithmetic; the
two ways alternate. CPU time, unlike time, does not depend on what else the machine does.

    python benchmarks/import_to_mds.py [--interactions 500000] [--repetitions 2]
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
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.claims import Claim, report  # noqa: E402
from benchmarks.importing import write_interactions  # noqa: E402

IMPORT, CONVERT = "convert/interactions_to_jsonl.py", "convert/jsonl_to_mds.py"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "PYTHONPATH": str(ROOT)}


@dataclass
class Way:
    """What a way has taken: CPU time in seconds, and the peak memory of its import in bytes."""

    folder: Path
    seconds: float = 0.0
    peak: int = 0


def run(way: Way, *words: str) -> str:
    """Runs one of the programs in the way's folder, and adds what it takes. Returns what it printed."""
    command = [sys.executable, str(ROOT / words[0]), *words[1:]]
    process = subprocess.Popen(
        command,
        cwd=way.folder,
        env=os.environ | ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, printed
    way.seconds += usage.ru_utime + usage.ru_stime
    if words[0] == IMPORT:
        way.peak = max(way.peak, usage.ru_maxrss * 1024)
    return printed


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def shards(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.glob("*/*"))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=500_000)
    parser.add_argument("--repetitions", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        ours, rival = Way(Path(name) / "ours"), Way(Path(name) / "rival")
        for way in (ours, rival):
            way.folder.mkdir()
            write_interactions(way.folder / "ratings.csv", arguments.interactions)
        for _ in range(arguments.repetitions):
            run(ours, IMPORT, "ratings.csv", "--out", "out", "--overwrite", "--to", "mds")
            shutil.rmtree(rival.folder / "mds", ignore_errors=True)
            printed = run(rival, IMPORT, "ratings.csv", "--out", "out", "--overwrite")
            for command in re.findall(r"^  ugt convert (.*)$", printed, re.MULTILINE):
                run(rival, CONVERT, *shlex.split(command))
        same = shards(ours.folder / "out") == shards(rival.folder / "mds")
        our_bytes, rival_bytes = size(ours.folder / "out"), size(rival.folder / "out") + size(rival.folder / "mds")
    date = datetime.datetime.now(datetime.UTC).date()
    our_seconds, rival_seconds = (way.seconds / arguments.repetitions for way in (ours, rival))
    seconds = f"{arguments.interactions:,} interactions, {date}: {our_seconds:.0f} s and {rival_seconds:.0f} s"
    megabytes = f"{our_bytes / 1e6:,.0f} MB and {rival_bytes / 1e6:,.0f} MB"
    more = ours.peak - rival.peak
    memory = f"{ours.peak / 1e6:,.0f} MB and {rival.peak / 1e6:,.0f} MB"
    steps, what = "import to JSON Lines, then conversion", "import --to mds:"
    claims = [
        Claim(f"{what} CPU time", steps, our_seconds / rival_seconds, 1.1, at_least=False, note=seconds),
        Claim(f"{what} disk", steps, our_bytes / rival_bytes, 0.5, at_least=False, note=megabytes),
        Claim(f"{what} MB of memory more than to JSON Lines", "200 MB", more / 1e6, 200, at_least=False, note=memory),
        Claim(f"{what} folders that differ", steps, float(not same), 0.0, at_least=False),
    ]
    return report(__file__, claims)


if __name__ == "__main__":
    sys.exit(main())
