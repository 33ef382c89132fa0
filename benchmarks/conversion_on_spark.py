"""Claim: on one machine, --engine spark converts at least half as fast as --workers, its start aside, and neither
engine has a Python process of more than 500 MB. What Spark adds is a start of some seconds and Java's memory.

Both use two cores and run alternately; each time is the shortest of the repetitions, and the start is the time for ten
rows. The results have the date of the run.

    python benchmarks/conversion_on_spark.py [--rows 20000] [--repeat 8] [--repetitions 3]
"""

import argparse
import contextlib
import datetime
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.claims import Claim, report  # noqa: E402
from benchmarks.conversion import repeated, write_rows  # noqa: E402

ENGINES = {"workers": ("--workers", "2"), "spark": ("--engine", "spark", "--master", "local[2]")}


def run_command(source: Path, out: Path, *options: str) -> tuple[float, dict[str, int]]:
    """Converts with the command. Returns the seconds, and the peak memory in bytes of the largest process of each
    program: python, java."""
    command = [sys.executable, str(ROOT / "convert/jsonl_to_mds.py"), str(source), "--kind", "recommend"]
    start = time.perf_counter()
    process = psutil.Popen([*command, "--out", str(out), *options], stdout=subprocess.DEVNULL)
    peaks = {"python": 0, "java": 0}
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            for one in (process, *process.children(recursive=True)):
                name = "java" if one.name() == "java" else "python"
                peaks[name] = max(peaks[name], one.memory_info().rss)
        time.sleep(0.05)
    assert process.returncode == 0
    taken = time.perf_counter() - start
    shutil.rmtree(out)
    return taken, peaks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=8, help="times that the rows are repeated in the input")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", arguments.rows)
        write_rows(folder / "few.jsonl", 10)
        large = repeated(
            folder / "rows.jsonl", folder / "large.jsonl", arguments.repeat * (folder / "rows.jsonl").stat().st_size
        )
        starts, seconds = dict.fromkeys(ENGINES, math.inf), dict.fromkeys(ENGINES, math.inf)
        peaks = {}
        for _ in range(arguments.repetitions):
            for engine, options in ENGINES.items():
                start, _ = run_command(folder / "few.jsonl", folder / "mds", *options)
                taken, peaks[engine] = run_command(large, folder / "mds", *options)
                starts[engine], seconds[engine] = min(starts[engine], start), min(seconds[engine], taken)
        size = large.stat().st_size
    speed = {engine: size / (seconds[engine] - starts[engine]) for engine in ENGINES}
    note = f"{size / 1e6:.0f} MB on {datetime.date.today()}: {seconds['spark']:.1f} s and {seconds['workers']:.1f} s, "
    note += f"of which the start takes {starts['spark']:.1f} s and {starts['workers']:.1f} s"
    claims = [Claim("--engine spark: rows/s", "--workers 2", speed["spark"] / speed["workers"], 0.5, True, note)]
    for engine, options in ENGINES.items():
        what = f"{' '.join(options[:2])}: MB of the largest Python process"
        java = f"Java: {peaks[engine]['java'] / 1e6:.0f} MB" if peaks[engine]["java"] else ""
        claims.append(Claim(what, "500 MB", peaks[engine]["python"] / 1e6, 500, False, java))
    return report(__file__, claims)


if __name__ == "__main__":
    sys.exit(main())
