"""Claim: a run that is killed repeatedly logs the same metrics as an uninterrupted run.

Small runs of stage 3, all losses on, are killed at random moments (during the start, in the first step, in any step,
during an evaluation, during a save, at the end of an epoch) by random signals to the launcher, to one rank or to all
processes, and restarted with the same command until they are done. Then metrics.jsonl is compared with that of an
uninterrupted run.

First every start uses the same strategy, with dropout and expert capacity, and the numbers must be equal to the last
bit: one process, then two ranks under each strategy. Then each start uses a random strategy on one rank or two, in
float32 without dropout and expert capacity, and the numbers must agree to 1e-5.

    python -m tests.chaos [--kills 100] [--seed 42] [--only DDP] [--steps 30] [--out FOLDER]
"""

import argparse
import contextlib
import json
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
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.parity import (  # noqa: E402
    BASE,
    ROWS,
    STRATEGIES,
    common_overrides,
    largest_difference,
    launch,
    make_data,
    metrics_of,
    stage_job,
)
from ugt_composer.checkpoint.run_checkpoints import newest_checkpoint  # noqa: E402
from ugt_composer.checkpoint.save_folder import batch_of  # noqa: E402
from ugt_composer.errors import EXIT_PREEMPTED, UserError  # noqa: E402

BOUND = 1e-5  # for relative differences if the strategy changes
HANG = 600  # seconds after which a start counts as hanging
KILLS_A_RUN = 5
MICROBATCHES = 2
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LAUNCHER, EVERYONE = "launcher", "everyone"  # everyone: its process group, as a scheduler or a shutdown signals it
MOMENTS = ("starting", "first step", "any step", "evaluation", "save", "epoch end")
RANDOM = ("model.dropout=0.1", "model.expert_capacity_factor=1.25")
MIXED = "each start another"
USERS = 300  # few enough for several epochs in a run


@dataclass
class Tally:
    kills: Counter = field(default_factory=Counter)  # of (moment, signal, target)
    steps: int = 0
    divergences: int = 0
    worst: float = 0.0
    checkpoints_lost: int = 0
    wrong_exits: list[str] = field(default_factory=list)
    seconds_lost: float = 0.0
    warned_exits: list[float] = field(default_factory=list)  # seconds from a signal to the launcher's exit with 75

    @property
    def is_bad(self) -> bool:
        return bool(self.divergences or self.checkpoints_lost or self.wrong_exits)


@dataclass(frozen=True)
class Plan:
    """A run: its `command(folder, strategy)`, and the numbers of batches between evaluations and in an epoch."""

    command: Callable[[Path, str], list[str]]
    strategies: tuple[str, ...]
    evaluates_every: int
    epoch: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="kills in total")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--only", choices=[*STRATEGIES, MIXED], help="run only one row of the table")
    parser.add_argument("--steps", type=int, default=30, help="batches of each run")
    parser.add_argument("--out", type=Path, help="folder for data and runs; default: a temporary one")
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else [*STRATEGIES, MIXED]
    # Two fifths of the kills are for changing strategies, because there are many combinations.
    kills = {name: arguments.kills * 2 // 5 if name == MIXED else arguments.kills // 10 for name in names}
    kills[names[-1]] += arguments.kills - sum(kills.values())
    with contextlib.ExitStack() as stack:
        out = arguments.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_data(out, arguments.seed, USERS)
        common = chaos_overrides(out, arguments)
        launch(1, [stage_job(out, stage, BASE, common) for stage in (1, 2)], out)
        tallies = {}
        for number, name in enumerate(tqdm(names, unit="row")):
            plan = shop_plan(out, common, name)
            bound = BOUND if name == MIXED else 0.0
            tallies[name] = chaos(plan, out / name, kills[name], arguments.seed + number, bound)
    report(tallies)
    return 1 if any(tally.is_bad for tally in tallies.values()) else 0


def chaos_overrides(out: Path, arguments: argparse.Namespace) -> list[str]:
    size = {"microbatches": MICROBATCHES, "seed": arguments.seed, "d_model": 32, "layers": 1, "steps": arguments.steps}
    return common_overrides(out, argparse.Namespace(**size))


def shop_plan(out: Path, common: list[str], name: str) -> Plan:
    """The plan of a row of the table: one strategy, or all of them."""
    every = ["eval_interval=5ba", "save_interval=3ba", "data.train.num_workers=2", "dist_timeout=60"]
    rows = min(sum(1 for _ in (out / f"data/{kind}.jsonl").open()) for kind in ("train", "preference_train"))
    if name != MIXED:
        every += RANDOM

    def command(folder: Path, strategy: str) -> list[str]:
        # In-batch negatives are the rows of one microbatch of all ranks, and one rank groups several microbatches
        # differently than two ranks. So there is one microbatch if the number of ranks changes.
        rows_at_once = ROWS if name == MIXED else ROWS // MICROBATCHES
        job = stage_job(out, 3, strategy, [*common, *every, f"device_train_microbatch_size={rows_at_once}"])
        return start_command(strategy, [*job["yaml"], *job["overrides"], f"save_folder={folder}"])

    return Plan(command, tuple(STRATEGIES) if name == MIXED else (name,), 5, -(-2 * rows // ROWS))


def start_command(strategy: str, arguments: list[str]) -> list[str]:
    """One process without a launcher, or two ranks."""
    if strategy == BASE:
        return [sys.executable, str(ROOT / "train.py"), *arguments]
    return [str(Path(sys.executable).parent / "composer"), "-n", "2", str(ROOT / "train.py"), *arguments]


def chaos(plan: Plan, out: Path, kills: int, seed: int, bound: float) -> Tally:
    """Kills runs until there were `kills` kills, and compares each run when it is done."""
    out.mkdir(exist_ok=True)
    chance, tally = random.Random(seed), Tally()
    uninterrupted = out / "whole"
    started = time.monotonic()
    if (end := Start(plan.command(uninterrupted, plan.strategies[0]), uninterrupted).wait()) != 0:
        raise RuntimeError(f"the uninterrupted run ended with {end}")
    uninterrupted_seconds = time.monotonic() - started
    for number in range(kills):
        if (left := kills - tally.kills.total()) <= 0:
            break
        folder, started = out / f"killed-{number}", time.monotonic()
        killed_run(plan, folder, min(left, KILLS_A_RUN), chance, tally)
        tally.seconds_lost += time.monotonic() - started - uninterrupted_seconds
        difference = largest_difference(comparable(uninterrupted), comparable(folder))
        tally.worst = max(tally.worst, difference)
        tally.divergences += difference > bound
        tally.steps += len(comparable(folder))
    return tally


def killed_run(plan: Plan, folder: Path, kills: int, chance: random.Random, tally: Tally) -> None:
    """Starts one run until it is done, and kills it up to `kills` times."""
    newest, done = 0, False
    while not done:
        strategy = chance.choice(plan.strategies)
        start = Start(plan.command(folder, strategy), folder)
        kill = None
        if kills > 0 and (kill := strike(start, plan, chance)) is not None:
            kills -= 1
            tally.kills[kill] += 1
        kill_time = time.monotonic()
        status = start.wait()
        done = status == 0
        if (kill is not None and is_wrong(status, *kill)) or (kill is None and not done):
            tally.wrong_exits.append(f"{strategy}, {kill}: {status}\n{start.output()}")
        if kill is not None and status == EXIT_PREEMPTED:
            tally.warned_exits.append(time.monotonic() - kill_time)
        if kill is None and not done:
            return
        checkpoint_batch = newest_batch(folder)
        tally.checkpoints_lost += checkpoint_batch < newest
        newest = max(newest, checkpoint_batch)


def is_wrong(status: int, moment: str, name: str, target: str) -> bool:
    """Whether the launcher's exit status is wrong for this kill."""
    if moment == "starting" or name == "SIGKILL" or (name == "SIGUSR1" and target in (LAUNCHER, EVERYONE)):
        return status == 2  # Python itself may still be starting; Composer's launcher does not handle SIGUSR1
    return status not in (0, EXIT_PREEMPTED)


class Start:
    """One start of the launcher."""

    def __init__(self, command: list[str], folder: Path):
        self.folder = folder
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process runs
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        streams: dict[str, Any] = {"stdout": self.log, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **streams)
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
    """Sends a random signal at a random moment. Returns (moment, signal, target), or None if the run ended before."""
    moment, number = chance.choice(MOMENTS), chance.choice(SIGNALS)
    target, pause, steps = chance.choice((LAUNCHER, "rank", EVERYONE)), chance.random(), chance.randint(1, 8)
    if not come_to(moment, start, plan, pause, steps) or start.is_over():
        return None
    ranks = start.ranks()
    if not ranks:
        return None
    try:
        if target == EVERYONE:
            os.killpg(start.process.pid, number)
        elif target == LAUNCHER and start.has_launcher:
            start.process.send_signal(number)
        else:
            rank = chance.randrange(len(ranks))
            ranks[rank].send_signal(number)
            target = f"rank {rank}"
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None
    return moment, signal.Signals(number).name, target


def come_to(moment: str, start: Start, plan: Plan, pause: float, steps: int) -> bool:
    """Waits for a moment. False if the run ended before it."""
    before = start.lines_before
    if moment == "starting":
        time.sleep(1 + 6 * pause)
        return True
    if moment == "first step":
        return until(lambda: len(recorded(start.folder)) != before, start)
    if moment == "save":
        reached = until(lambda: len(recorded(start.folder)) != before, start)
        return reached and until(lambda: any(start.folder.glob("ba*.tmp")), start, 0.0005)
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
    """The batches in metrics.jsonl, without a line that is still being written."""
    return [json.loads(line)["batch"] for line in _whole_lines(folder / "metrics.jsonl")]


def _whole_lines(path: Path) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError):
        yield from (line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))


def newest_batch(folder: Path) -> int:
    """The batch of the checkpoint from which the next start would resume; 0 if there is none."""
    try:
        checkpoint = newest_checkpoint(folder)
    except UserError:
        return 0
    return 0 if checkpoint is None else batch_of(checkpoint[0])


def comparable(folder: Path) -> list[dict[str, Any]]:
    """The logged metrics without those that depend on timing."""
    return [{k: v for k, v in line.items() if not k.endswith("samples/s")} for line in metrics_of(folder)]


def report(tallies: dict[str, Tally]) -> None:
    console = Console()
    table = Table("moment", *(signal.Signals(number).name for number in SIGNALS), title="Kills")
    kills = sum((tally.kills for tally in tallies.values()), Counter())
    for moment in MOMENTS:
        names = (signal.Signals(number).name for number in SIGNALS)
        table.add_row(moment, *(str(sum(n for (m, s, _), n in kills.items() if (m, s) == (moment, x))) for x in names))
    console.print(table)
    heads = ("kills", "steps compared", "runs diverged", "largest difference", "checkpoints lost", "wrong exits")
    table = Table("strategy", *heads, "seconds lost per kill", "warning to exit, s", title="Results")
    for name, tally in tallies.items():
        number, warned = tally.kills.total(), sorted(tally.warned_exits)
        table.add_row(
            name,
            *map(str, (number, tally.steps, tally.divergences, f"{tally.worst:.1e}", tally.checkpoints_lost)),
            str(len(tally.wrong_exits)),
            f"{tally.seconds_lost / max(number, 1):.1f}",
            f"{warned[len(warned) // 2]:.1f}, at most {warned[-1]:.1f}" if warned else "none",
        )
    console.print(table)
    for tally in tallies.values():
        for text in tally.wrong_exits:
            console.print(text, markup=False)


if __name__ == "__main__":
    sys.exit(main())
