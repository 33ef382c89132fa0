"""Claim: on a machine that other processes use too, a step takes less than half the time that it takes
with OpenMP's own settings, and on an idle one no longer.

A training step of the demo's size runs under OpenMP's own settings and under those of `ugt_composer.job.cpus`, in two
processes that take turns, first alone and then with a process that keeps one of the cores busy.

    python benchmarks/busy_machine.py [--cores 2] [--seconds 60] [--spin TURNS …]
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.claims import Claim, report  # noqa: E402
from ugt_composer.job.cpus import WAIT_VARIABLES, share_cpus  # noqa: E402

BUSY = """import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
while True: pass"""
MOST_TURNS, LEAST_TURNS, WARM_UP = 40, 3, 1
ROWS, HISTORY, TARGET, CODEBOOKS = 256, 40, 2, (32, 128, 1024)


def step_when_asked(cores: list[int]) -> int:
    """The process of one setting: a training step for each line of standard input, whose seconds it prints. It may use
    these cores only, as if the machine had no others."""
    os.sched_setaffinity(0, cores)
    import torch

    from benchmarks.random_rows import random_row
    from ugt_composer.config.schema import ModelConfig
    from ugt_composer.data.collate import collate
    from ugt_composer.losses.unified import UnifiedLoss
    from ugt_composer.model.build import build_model

    sizes = {"d_model": 96, "n_heads": 4, "n_encoder_layers": 2, "n_decoder_layers": 1, "d_ff": 192, "num_experts": 4}
    model = build_model(ModelConfig(**sizes, top_k_experts=2, dropout=0.0, max_seq_len=64, codebook_sizes=CODEBOOKS), 0)
    loss, batch = UnifiedLoss(repr_dim=96), collate([random_row(n, CODEBOOKS, HISTORY, TARGET) for n in range(ROWS)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        optimizer.zero_grad()
        loss(model(batch), batch)["total_loss"].backward()
        optimizer.step()
        print(time.perf_counter() - start, flush=True)
    return 0


class Setting:
    """A process with these variables, on these cores."""

    def __init__(self, variables: dict[str, str], cores: list[int]):
        known = {name: value for name, value in os.environ.items() if name not in (*WAIT_VARIABLES, "OMP_NUM_THREADS")}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--process", *map(str, cores)],
            env=known | {"PYTHONPATH": str(ROOT)} | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def step(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.answer())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def neighbour(core: int) -> Iterator[None]:
    """A process that keeps this core busy."""
    process = subprocess.Popen([sys.executable, "-c", BUSY, str(core)])
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def in_turns(settings: dict[str, Setting], limit: float) -> dict[str, list[float]]:
    """Seconds of the steps of each setting, for about `limit` seconds."""
    turns: list[dict[str, float]] = []
    end = time.monotonic() + limit
    while len(turns) < WARM_UP + LEAST_TURNS or (len(turns) < WARM_UP + MOST_TURNS and time.monotonic() < end):
        turns.append({name: setting.step() for name, setting in settings.items()})
    return {name: [turn[name] for turn in turns[WARM_UP:]] for name in settings}


def median_ratio(ours: list[float], rival: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, rival, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--process", type=int, nargs="+", metavar="CORE", help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, default=2, help="cores that the steps may use (default 2)")
    parser.add_argument("--seconds", type=float, default=60, help="of each of the two parts (default 60)")
    parser.add_argument("--spin", nargs="*", default=[], metavar="TURNS", help="also these values of GOMP_SPINCOUNT")
    arguments = parser.parse_args()
    if arguments.process:
        return step_when_asked(arguments.process)
    cores = sorted(os.sched_getaffinity(0))[: arguments.cores]
    ours = {"OMP_NUM_THREADS": str(len(cores))}
    share_cpus(ours)
    variables = {"ours": ours, "default": {}, **{turns: {"GOMP_SPINCOUNT": turns} for turns in arguments.spin}}
    settings = {name: Setting(values, cores) for name, values in variables.items()}
    try:
        for setting in settings.values():
            assert setting.answer() == "ready"
        idle = in_turns(settings, arguments.seconds)
        with neighbour(cores[-1]):
            busy = in_turns(settings, arguments.seconds)
    finally:
        for setting in settings.values():
            setting.close()
    for name in arguments.spin:
        print(f"GOMP_SPINCOUNT={name}: idle {describe(idle, name)}; busy {describe(busy, name)}")
    slower = statistics.median(busy["ours"]) / statistics.median(idle["ours"])
    return report(
        __file__,
        [
            Claim("idle machine: time of a step", "OpenMP's settings", *bound(idle, 1.02)),
            Claim("one core busy: time of a step", "OpenMP's settings", *bound(busy, 0.5)),
            Claim(f"one of {len(cores)} cores busy: time of a step", "an idle machine", slower, 4.0, at_least=False),
        ],
    )


def bound(times: dict[str, list[float]], target: float) -> tuple[float, float, bool, str]:
    """Ratio, target, direction and note of a claim."""
    note = " and ".join(f"{1000 * statistics.median(times[name]):.0f} ms" for name in ("ours", "default"))
    return median_ratio(times["ours"], times["default"]), target, False, note


def describe(times: dict[str, list[float]], name: str) -> str:
    ratio = median_ratio(times[name], times["default"])
    return f"{1000 * statistics.median(times[name]):.0f} ms, {ratio:.3f} of the default's"


if __name__ == "__main__":
    sys.exit(main())
