"""Claim: an epoch of 10⁹ rows starts and resumes in seconds and in constant memory.

The data set is an index without shards. Each figure is of a new process: the seconds of one core from the creation of
the data set to the first 2,048 row ids of its one reader, and the growth of its peak memory meanwhile. A resumed run
has the position and the marks that a checkpoint holds. Streaming's own order is computed at a size that fits.

    python benchmarks/order.py [--rows 1000000000] [--shards 10000 100000] [--fits 10000000] [--repetitions 3]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.claims import PEAK, Claim, report  # noqa: E402
from ugt_composer.data.integrity import INDEX_NAME  # noqa: E402

# The arguments: the folder, what to measure, the rows that were read before, and the file of the position.
PROGRAM = """
import json, time
from pathlib import Path
from streaming.base.batching import generate_work
from streaming.base.world import World
from benchmarks.pipeline import dataset_of

folder, what, done, position = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
begin()
started = time.process_time()
dataset = dataset_of(Path(folder))
if what == "Streaming":
    dataset.shuffle_block_size = 1 << 18
    started = time.process_time()
    generate_work("random", dataset, World.detect(), 0, 0)
elif what == "memory":
    started = time.process_time()
    next(dataset.order())
elif what == "start":
    order = dataset.order()
    next(order)
    position.write_text(json.dumps(dataset.state_dict(0, from_beginning=True)))
else:
    dataset.load_state_dict({**json.loads(position.read_text()), "sample_in_epoch": done})
    order = dataset.order()
    next(order)
seconds = time.process_time() - started
longest, total, rows = 0.0, 0.0, 0
while what == "resume" and rows < 500_000:
    before = time.process_time()
    rows += len(next(order))
    total += time.process_time() - before
    longest = max(longest, time.process_time() - before)
print(json.dumps({"seconds": seconds, "longest": longest, "a_row": total / max(rows, 1)}))
end()
"""


def index_of(folder: Path, shards: int, rows: int) -> Path:
    """A folder with an index of `shards` shards of `rows` rows each, and nothing else."""
    folder.mkdir()
    shard = {"column_encodings": ["bytes"], "column_names": ["row"], "column_sizes": [None], "compression": None}
    shard |= {"format": "mds", "hashes": ["xxh64"], "samples": rows, "size_limit": 1 << 26, "version": 2}
    shard |= {"zip_data": None}
    names = (f"shard.{number:05}.mds" for number in range(shards))
    files = [{"basename": name, "bytes": 1 << 26, "hashes": {"xxh64": f"{0:016x}"}} for name in names]
    (folder / INDEX_NAME).write_text(json.dumps({"version": 2, "shards": [{**shard, "raw_data": f} for f in files]}))
    return folder


def measure(folder: Path, what: str, done: int = 0) -> tuple[dict[str, float], int]:
    """Seconds, and the growth of the peak memory in bytes."""
    command = [sys.executable, "-c", PEAK + PROGRAM, folder, what, done, folder / "position.json"]
    words = [str(word) for word in command]
    *_, figures, memory = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split("\n")[:-1]
    return json.loads(figures), int(memory)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10**9)
    parser.add_argument("--shards", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--fits", type=int, default=10**7, help="rows of an epoch that Streaming orders")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    claims = []
    with tempfile.TemporaryDirectory() as made:
        out = Path(made)
        fits = index_of(out / "fits", 100, arguments.fits // 100)
        pairs = [(measure(fits, "memory"), measure(fits, "Streaming")) for _ in range(arguments.repetitions)]
        times = [(ours[0]["seconds"], rival[0]["seconds"]) for ours, rival in pairs]
        memory = [(ours[1], rival[1]) for ours, rival in pairs]
        for name, values, target, unit, scale in (
            ("seconds of a core", times, 0.2, "s", 1.0),
            ("memory", memory, 0.1, "MB", 2.0**20),
        ):
            ours, rival = (statistics.median(numbers) / scale for numbers in zip(*values, strict=True))
            ratio = statistics.median(ours / rival for ours, rival in values)
            what = f"order of {arguments.fits:,} rows: {name}"
            claims.append(Claim(what, "Streaming", ratio, target, False, f"{ours:.2g} {unit} and {rival:.2g} {unit}"))
        for shards in arguments.shards:
            folder = index_of(out / str(shards), shards, arguments.rows // shards)
            where = f"{arguments.rows:,} rows in {shards:,} shards"
            for what, done, limit in (
                (
                    "start",
                    0,
                    "py1e draws again whatever is too large, so that where the draws of the last canonical node begin "
                    "is known only after those of all rows: NumPy makes them in about 13 ns a row, on one core.",
                ),
                ("resume", int(0.6 * arguments.rows), ""),
            ):
                runs = [measure(folder, what, done) for _ in range(arguments.repetitions if what == "resume" else 1)]
                figures, memory_used = min(runs, key=lambda run: run[0]["seconds"])
                note = f"then {1e9 * figures['a_row']:.0f} ns a row, at most {figures['longest']:.2f} s at once"
                name = f"{what}, {where}"
                seconds = figures["seconds"]
                claims.append(
                    Claim(
                        f"{name}: seconds of a core",
                        "flat",
                        seconds,
                        5,
                        False,
                        note if figures["longest"] else "",
                        limit,
                    )
                )
                claims.append(Claim(f"{name}: GB", "flat", memory_used / 1e9, 1, False))
    return report(__file__, claims)


if __name__ == "__main__":
    sys.exit(main())
