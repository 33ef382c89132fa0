"""Claim: 25 million interactions import within ten minutes and 8 GB on two cores, with 12 GB of temporary disk.

Generates ratings of users and items from a Zipf distribution, imports them with all defaults (leave-one-out,
preferences, ids from co-occurrence) in a separate process, and compares its wall time and peak memory with the limits.

    python benchmarks/importing.py [--interactions 25000000] [--format parquet|csv] [--threads 2]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parents[1]
MINUTES, GIGABYTES = 10, 8
USERS_PER, ITEMS_PER = 1 / 150, 1 / 400  # per interaction, as in MovieLens 25M
BLOCK = 5_000_000


def zipf(random: np.random.Generator, count: int, ranks: int, exponent: float) -> np.ndarray:
    """`count` draws from 0 to ranks − 1 with weights that fall as a power of the rank."""
    weights = np.cumsum(1 / (np.arange(ranks) + 10.0) ** exponent)
    return np.searchsorted(weights, random.random(count) * weights[-1]).astype(np.int32)


def write_interactions(path: Path, count: int, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    users, items = (max(int(count * ratio), 10) for ratio in (USERS_PER, ITEMS_PER))
    blocks = []
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        columns = {
            "userId": zipf(random, size, users, 0.7),
            "movieId": zipf(random, size, items, 1.0),
            "rating": random.choice(np.arange(1, 11) / 2, size).astype(np.float32),
            "timestamp": random.integers(1_000_000_000, 1_500_000_000, size),
        }
        blocks.append(pl.DataFrame(columns))
    table = pl.concat(blocks)
    if path.suffix == ".parquet":
        table.write_parquet(path)
    else:
        table.write_csv(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=25_000_000)
    parser.add_argument("--format", choices=("parquet", "csv"), default="csv")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / f"ratings.{arguments.format}", Path(folder) / "out"
        write_interactions(source, arguments.interactions)
        threads = {"OMP_NUM_THREADS": str(arguments.threads), "POLARS_MAX_THREADS": str(arguments.threads)}
        command = [sys.executable, str(ROOT / "convert/interactions_to_jsonl.py"), str(source), "--out", str(out)]
        start = time.perf_counter()
        process = subprocess.Popen(command, env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        print(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            return 1
        minutes, gigabytes = (time.perf_counter() - start) / 60, usage.ru_maxrss / 1e6
        written = sum(path.stat().st_size for path in out.iterdir()) / 1e9
    print(
        f"importing {arguments.interactions:,} interactions ({arguments.format}) with {arguments.threads} thread(s): "
        f"{minutes:.1f} minutes (limit {MINUTES}), peak {gigabytes:.1f} GB (limit {GIGABYTES}), "
        f"{written:.1f} GB written"
    )
    return int(minutes > MINUTES or gigabytes > GIGABYTES)


if __name__ == "__main__":
    sys.exit(main())
