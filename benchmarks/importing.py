"""Claim: 25 million interactions import within ten minutes and 8 GB on two cores; on Spark to the same bytes, in at
most three times the time, with workers that need at most twice the memory for ten times as many.

Generates ratings of users and items from a Zipf distribution and imports them with all defaults (leave-one-out,
preferences, ids from co-occurrence) as a command, by each engine. Memory is the resident set of the largest process of
a kind: Spark has a driver, whose semantic IDs need the same memory as on one machine, a process of Java and workers.

    python benchmarks/importing.py [--interactions 2500000 25000000] [--format parquet|csv] [--cores 2]
"""

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.claims import Claim, report  # noqa: E402

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


@dataclass(frozen=True)
class Import:
    """How long a command took, in seconds, and the memory of its largest process of each kind, in GB."""

    seconds: float
    memory: Counter[str]

    def __str__(self) -> str:
        memory = ", ".join(f"{kind} {gigabytes:.1f} GB" for kind, gigabytes in self.memory.items())
        return f"{self.seconds / 60:.1f} min, {memory}"


def run(source: Path, out: Path, engine: str, cores: int) -> Import:
    threads = {"OMP_NUM_THREADS": str(cores), "POLARS_MAX_THREADS": str(cores)}
    command = [sys.executable, str(ROOT / "convert/interactions_to_jsonl.py"), str(source), "--out", str(out)]
    command += ["--engine", engine, *(["--master", f"local[{cores}]"] if engine == "spark" else [])]
    peaks: Counter[str] = Counter()
    start = time.perf_counter()
    with psutil.Popen(command, env={**os.environ, **threads}, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            _note_memory(process, peaks)
            time.sleep(0.2)
    if process.returncode:
        sys.exit(f"the import by --engine {engine} has failed")
    return Import(time.perf_counter() - start, peaks)


def _note_memory(process: psutil.Process, peaks: Counter[str]) -> None:
    for one in (process, *_children(process)):
        try:
            is_java, is_driver = "java" in one.name(), one.pid == process.pid
            kind = "driver" if is_driver else "Java" if is_java else "worker"
            peaks[kind] = max(peaks[kind], one.memory_info().rss / 1e9)
        except psutil.NoSuchProcess:
            pass


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def same_files(one: Path, other: Path) -> bool:
    names = sorted(os.listdir(one))
    return names == sorted(os.listdir(other)) and not any(filecmp.cmpfiles(one, other, names, shallow=False)[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, nargs=2, default=(2_500_000, 25_000_000), metavar=("FEW", "MANY"))
    parser.add_argument("--format", choices=("parquet", "csv"), default="csv")
    parser.add_argument("--cores", type=int, default=2)
    arguments = parser.parse_args()
    done: dict[tuple[str, int], Import] = {}
    same = True
    for count in arguments.interactions:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / f"ratings.{arguments.format}"
            write_interactions(source, count)
            for engine in ("local", "spark"):
                done[engine, count] = run(source, Path(folder) / engine, engine, arguments.cores)
                print(f"{count:,} interactions, {engine}: {done[engine, count]}", flush=True)
            same &= same_files(Path(folder) / "local", Path(folder) / "spark")
            shutil.rmtree(folder, ignore_errors=True)
    few, many = arguments.interactions
    return report(Path(__file__).stem, claims(done, few, many, same))


def claims(done: dict[tuple[str, int], Import], few: int, many: int, same: bool) -> list[Claim]:
    local, spark = done["local", many], done["spark", many]
    growth = {engine: done[engine, many].seconds / done[engine, few].seconds for engine in ("local", "spark")}
    worker = {count: done["spark", count].memory["worker"] for count in (few, many)}
    times = many / few
    return [
        Claim(
            f"import {many:,} interactions", f"{MINUTES} minutes", local.seconds / 60 / MINUTES, 1, False, str(local)
        ),
        Claim("its memory", f"{GIGABYTES} GB", local.memory["driver"] / GIGABYTES, 1, False),
        Claim("--engine spark", "local", spark.seconds / local.seconds, 3, False, str(spark)),
        Claim("files of --engine spark", "the same bytes", float(same), 1, True),
        Claim(f"time, local, {times:g} times as many", "in proportion", growth["local"] / times, 1.2, False),
        Claim(f"time, spark, {times:g} times as many", "in proportion", growth["spark"] / times, 1.2, False),
        Claim(f"memory of a Spark worker, {times:g} times as many", f"{few:,}", worker[many] / worker[few], 2, False),
    ]


if __name__ == "__main__":
    sys.exit(main())
