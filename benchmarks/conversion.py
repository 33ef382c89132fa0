"""Claim: the conversion, which validates and hashes, is several times faster than the usual script, which does neither.

The usual script parses a line with `json.loads` and writes an `ndarray` column a field with MDSWriter. Both convert the
same file on one core, in turn; the figure is the median of the ratios.

    python benchmarks/conversion.py [--rows 20000] [--repetitions 3]
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from streaming import MDSWriter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convert.jsonl_to_mds import main as convert
from ugt_composer.data.history import decoder_lists, encoder_lists


def write_rows(path: Path, rows: int, seed: int = 0) -> None:
    """Histories of 20 to 80 items and one to five targets."""
    random = np.random.default_rng(seed)
    with path.open("w") as file:
        for user in range(rows):
            items = [tuple(triple) for triple in random.integers(5, 1024, (random.integers(21, 86), 3)).tolist()]
            cut = len(items) - int(random.integers(1, 6))
            row = {"user_id": f"user-{user}", **encoder_lists(items[:cut]), **decoder_lists(items[cut:])}
            file.write(json.dumps(row) + "\n")


def usual_script(source: Path, out: Path) -> None:
    with source.open() as file:
        names = [name for name in json.loads(file.readline()) if name != "user_id"]
    columns = {"user_id": "str", **dict.fromkeys(names, "ndarray:int32")}
    with source.open() as file, MDSWriter(out=str(out), columns=columns) as writer:
        for line in file:
            row = json.loads(line)
            writer.write({name: np.asarray(v, np.int32) if name != "user_id" else v for name, v in row.items()})


def this_conversion(source: Path, out: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert convert([str(source), "--kind", "recommend", "--out", str(out)]) == 0


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    ratios, rates = [], []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.jsonl"
        write_rows(source, arguments.rows)
        for repetition in range(arguments.repetitions):
            ours = seconds(this_conversion, source, Path(folder) / f"ours-{repetition}")
            usual = seconds(usual_script, source, Path(folder) / f"usual-{repetition}")
            ratios.append(usual / ours)
            rates.append(arguments.rows / ours)
    print(f"conversion: {statistics.median(ratios):.1f} x the usual script ({statistics.median(rates):,.0f} rows/s)")


if __name__ == "__main__":
    main()
