"""Claim: a run that is killed again and again records the same numbers as one that is left alone.

Small runs of stage 1 are killed at random moments (while starting, in the first step, in any step, within an
evaluation, within a save, at an epoch's end), by random signals, sent to the launcher or to one rank, and started again
with the same command until they are done: each start under another strategy, on one rank or two. Their metrics.jsonl is
then compared with an uninterrupted run's: to 1e-5, in float32 without dropout and expert capacity. With --fixed NAME
one strategy makes every start, with dropout and expert capacity, and the numbers have to be equal to the last bit.

    python benchmarks/chaos.py [--kills 100] [--seed 42] [--fixed DDP] [--steps 40] [--out FOLDER]
"""

import argparse
import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.parity import (  # noqa: E402
    BASE,
    ROWS,
    STRATEGIES,
    common_overrides,
    largest_difference,
    make_data,
    metrics_of,
    stage_job,
)
from ugt_composer.checkpoint.training import batch_of, newest_checkpoint  # noqa: E402
from ugt_composer.errors import EXIT_PREEMPTED, UserError  # noqa: E402

BOUND = 1e-5  # of a relative difference, where strategies change
HANG = 240  # seconds that one start may take
KILLS_A_RUN = 5
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LAUNCHER = "launcher"
MOMENTS = ("starting", "first step", "any step", "evaluation", "save", "epoch end")
ANY_FLAVOUR = ("model.dropout=0.1", "model.expert_capacity_factor=1.25")


@dataclass
class Tally:
    kills: Counter = field(default_factory=Counter)  # of (moment, signal, target)
    steps: int = 0
    divergences: int = 0
    worst: float = 0.0
    checkpoints_lost: int = 0
    wrong_exits: list[str] = field(default_factory=list)
    seconds_lost: float = 0.0
    warned_exits: list[float] = field(default_factory=list)  # seconds from a warning to the launcher's exit


@dataclass(frozen=True)
class Plan:
    """What a run is: `command(folder, strategy)` and the batches at which it evaluates, and ends an epoch."""

    command: Callable[[Path, str], list[str]]
    strategies: tuple[str, ...]
    evaluates_every: int
    epoch: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--fixed", choices=[*STRATEGIES], help="one strategy for every start; compared to the last bit")
    parser.add_argument("--steps", type=int, default=40, help="batches of each run")
    parser.add_argument("--out", type=Path, help="folder for data and runs; default: a temporary one")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        out = arguments.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_data(out, arguments.seed)
        plan = shop_plan(out, arguments)
        tally = chaos(plan, out, arguments.kills, arguments.seed, 0.0 if arguments.fixed else BOUND)
    report(tally)
    return 1 if tally.divergences or tally.checkpoints_lost or tally.wrong_exits else 0


def shop_plan(out: Path, arguments: argparse.Namespace) -> Plan:
    size = {"microbatches": 1, "seed": arguments.seed, "d_model": 32, "layers": 1, "steps": arguments.steps}
    common = common_overrides(out, argparse.Namespace(**size))
    every = ["eval_interval=5ba", "save_interval=3ba", "data.train.num_workers=1", "dist_timeout=60"]
    if arguments.fixed:
        every += ANY_FLAVOUR
    rows = len((out / "data/train.jsonl").read_text().splitlines())

    def command(folder: Path, strategy: str) -> list[str]:
        job = stage_job(out, 1, strategy, [*common, *every])
        return start_command(strategy, [*job["yaml"], *job["overrides"], f"save_folder={folder}"])

    strategies = (arguments.fixed,) if arguments.fixed else tuple(STRATEGIES)
    return Plan(command, strategies, 5, -(-rows // ROWS))


def start_command(strategy: str, arguments: list[str]) -> list[str]:
    """One process without a launcher, or two ranks."""
    if strategy == BASE:
        return [sys.executable, str(ROOT / "train.py"), *arguments]
    return [str(Path(sys.executable).parent / "composer"), "-n", "2", str(ROOT / "train.py"), *arguments]


def chaos(plan: Plan, out: Path, kills: int, seed: int, bound: float) -> Tally:
    """Kills runs until there were that many kills, and compares each one when it is done."""
    chance, tally = random.Random(seed), Tally()
    whole = out / "whole"
    started = time.monotonic()
    if (end := Start(plan.command(whole, plan.strategies[0]), whole).wait()) != 0:
        raise RuntimeError(f"the uninterrupted run ended with {end}")
    whole_seconds = time.monotonic() - started
    for number in range(kills):
        if (left := kills - tally.kills.total()) <= 0:
            break
        folder, started = out / f"killed-{number}", time.monotonic()
        killed_run(plan, folder, min(left, KILLS_A_RUN), chance, tally)
        tally.seconds_lost += time.monotonic() - started - whole_seconds
        difference = largest_difference(comparable(whole), comparable(folder))
        tally.worst = max(tally.worst, difference)
        tally.divergences += difference > bound
        tally.steps += len(comparable(folder))
    return tally


def killed_run(plan: Plan, folder: Path, kills: int, chance: random.Random, tally: Tally) -> None:
    """One run, started until it is done."""
    newest, done = 0, False
    while not done:
        strategy = chance.choice(plan.strategies)
        start = Start(plan.command(folder, strategy), folder)
        kill = None
        if kills > 0 and (kill := strike(start, plan, chance)) is not None:
            kills -= 1
            tally.kills[kill] += 1
        struck = time.monotonic()
        status = start.wait()
        done = status == 0
        if (kill is not None and is_wrong(status, *kill)) or (kill is None and not done):
            tally.wrong_exits.append(f"{strategy}, {kill}: {status}\n{start.output()}")
        if kill is not None and status == EXIT_PREEMPTED:
            tally.warned_exits.append(time.monotonic() - struck)
        if kill is None and not done:
            return
        found = newest_batch(folder)
        tally.checkpoints_lost += found < newest
        newest = max(newest, found)


def is_wrong(status: int, moment: str, name: str, target: str) -> bool:
    """Whether the launcher's exit status is none that this kill may lead to."""
    if moment == "starting" or name == "SIGKILL" or (name, target) == ("SIGUSR1", LAUNCHER):
        return status == 2  # Python itself may still be starting; Composer's launcher knows no SIGUSR1
    return status not in (0, EXIT_PREEMPTED)


class Start:
    """One start of the launcher."""

    def __init__(self, command: list[str], folder: Path):
        self.folder = folder
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        streams: dict[str, Any] = {"stdout": self.log, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **streams)
        self.has_launcher = "-n" in command
        self.lines_before = len(recorded(folder))

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def ranks(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            if not self.has_launcher:
                return [psutil.Process(self.process.pid)]
            return [p for p in psutil.Process(self.process.pid).children() if "train.py" in " ".join(p.cmdline())]
        return []

    def wait(self) -> int:
        try:
            return self.process.wait(HANG)
        except subprocess.TimeoutExpired:
            for process in (*self.ranks(), self.process):
                process.kill()
            self.process.wait()
            return 124

    def output(self) -> str:
        self.log.seek(0)
        return self.log.read()[-2000:]


def strike(start: Start, plan: Plan, chance: random.Random) -> tuple[str, str, str] | None:
    """Kills at a random moment; tells when, by what and whom. None: the run was done before."""
    moment, number = chance.choice(MOMENTS), chance.choice(SIGNALS)
    target, pause, steps = chance.choice((LAUNCHER, "rank")), chance.random(), chance.randint(1, 8)
    if not come_to(moment, start, plan, pause, steps) or start.is_over():
        return None
    ranks = start.ranks()
    if not ranks:
        return None
    try:
        if target == LAUNCHER and start.has_launcher:
            start.process.send_signal(number)
        else:
            place = chance.randrange(len(ranks))
            ranks[place].send_signal(number)
            target = f"rank {place}"
    except psutil.NoSuchProcess:
        return None
    return moment, signal.Signals(number).name, target


def come_to(moment: str, start: Start, plan: Plan, pause: float, steps: int) -> bool:
    """Waits for a moment. False where the run ended before."""
    before = start.lines_before
    if moment == "starting":
        time.sleep(1 + 6 * pause)
        return True
    if moment == "first step":
        return until(lambda: len(recorded(start.folder)) != before, start)
    if moment == "save":
        sleep = until(lambda: len(recorded(start.folder)) != before, start)
        return sleep and until(lambda: any(start.folder.glob("ba*.tmp")), start, 0.0005)
    every = {"evaluation": plan.evaluates_every, "epoch end": plan.epoch}.get(moment)
    if every is None:
        reached = until(lambda: len(recorded(start.folder)) >= before + steps, start)
    else:
        offset = 1 if moment == "evaluation" else 0  # the batch's own line is written after its evaluation
        reached = until(lambda: _is_new_multiple(start, before, every, offset), start)
    time.sleep(0.1 * pause)
    return reached


def _is_new_multiple(start: Start, before: int, every: int, offset: int) -> bool:
    lines = recorded(start.folder)
    return len(lines) > before and (lines[-1] + offset) % every == 0


def until(condition: Callable[[], bool], start: Start, pause: float = 0.005) -> bool:
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline and not start.is_over():
        if condition():
            return True
        time.sleep(pause)
    return False


def recorded(folder: Path) -> list[int]:
    """The batches in the record; a line that is being written does not count."""
    return [json.loads(line)["batch"] for line in _whole_lines(folder / "metrics.jsonl")]


def _whole_lines(path: Path) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError):
        yield from (line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))


def newest_batch(folder: Path) -> int:
    """Of the checkpoint that the next start would go on from. 0: none."""
    try:
        found = newest_checkpoint(folder)
    except UserError:
        return 0
    return 0 if found is None else batch_of(found[0])


def comparable(folder: Path) -> list[dict[str, Any]]:
    """The record without what time decides."""
    return [{k: v for k, v in line.items() if not k.endswith("samples/s")} for line in metrics_of(folder)]


def report(tally: Tally) -> None:
    console = Console()
    table = Table("moment", *(signal.Signals(number).name for number in SIGNALS), title="Kills")
    for moment in MOMENTS:
        names = (signal.Signals(number).name for number in SIGNALS)
        row = (sum(n for (m, s, _), n in tally.kills.items() if (m, s) == (moment, name)) for name in names)
        table.add_row(moment, *map(str, row))
    console.print(table)
    kills = tally.kills.total()
    warned = sorted(tally.warned_exits) or [math.nan]
    table = Table("", "", title="What came of them", show_header=False)
    for name, value in (
        ("kills", kills),
        ("steps compared", tally.steps),
        ("runs that diverged", tally.divergences),
        ("largest relative difference", f"{tally.worst:.1e}"),
        ("checkpoints lost", tally.checkpoints_lost),
        ("wrong exit statuses, hangs", len(tally.wrong_exits)),
        ("seconds lost a kill", f"{tally.seconds_lost / max(kills, 1):.1f}"),
        (
            "seconds from a warning to the exit",
            f"{warned[len(warned) // 2]:.1f}, at most {warned[-1]:.1f}" if warned else "–",
        ),
    ):
        table.add_row(name, str(value))
    console.print(table)
    for text in tally.wrong_exits:
        console.print(text, markup=False)


if __name__ == "__main__":
    sys.exit(main())
