"""How a benchmark measures and says what it claims: ratios of times taken in turns, in one run, and their targets.

`report` prints a script's claims and puts them into RESULTS.md, in the place of what the same script wrote before.
"""

import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = """# What was measured

Written by `make bench`. A ratio compares two things done in turns in one run, so that it holds on a noisy machine too;
it is the median over the repetitions. Absolute numbers stand beside it to give an idea, not to be compared with others.
"""


@dataclass(frozen=True)
class Claim:
    """
    Attributes:
        what: is measured.
        rival: is what it is held against.
        ratio: of the two, as the target is meant.
        target: for the ratio.
        at_least: whether the target is a lower bound.
        note: absolute numbers.
        limit: why the target is missed, said below the table where it is.
    """

    what: str
    rival: str
    ratio: float
    target: float
    at_least: bool
    note: str = ""
    limit: str = ""

    @property
    def holds(self) -> bool:
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target

    def cells(self) -> list[str]:
        target = f"{'≥' if self.at_least else '≤'} {self.target:g}"
        return [self.what, self.rival, f"{self.ratio:.3g}", target, "yes" if self.holds else "no", self.note]


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turns(ours: Callable[[], object], rival: Callable[[], object], repetitions: int) -> tuple[float, float, float]:
    """Runs both in turns, after a run of each that does not count.

    Returns: the median of our time over the rival's, and the median of either in seconds.
    """
    ours(), rival()
    pairs = [(seconds(ours), seconds(rival)) for _ in range(repetitions)]
    return statistics.median(a / b for a, b in pairs), *(statistics.median(times) for times in zip(*pairs, strict=True))


def peak_bytes(program: str, *arguments: object) -> int:
    """How much the peak memory of a Python program of its own grows between its lines "begin" and "end" on stdout."""
    command = [sys.executable, "-c", PEAK + program, *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(output.split()[-1])


# For programs of `peak_bytes`: they call begin() once all is warm, and end() when done.
PEAK = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
def _peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
def begin():
    global _before
    open("/proc/self/clear_refs", "w").write("5")
    _before = _peak()
def end():
    print(_peak() - _before)
"""


def report(script: str, claims: Sequence[Claim]) -> int:
    """Prints the claims and keeps them. Returns the exit status: 1 where one does not hold."""
    heads = ("what", "against", "ratio", "target", "holds", "")
    table = Table(*heads)
    for claim in claims:
        table.add_row(*claim.cells())
    Console().print(table)
    limits = [f"- Missed by *{claim.what}*: {claim.limit}" for claim in claims if claim.limit and not claim.holds]
    for limit in limits:
        Console().print(limit, highlight=False)
    write_section(script, [*markdown(heads, [claim.cells() for claim in claims]), *(["", *limits] if limits else [])])
    return int(not all(claim.holds for claim in claims))


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def write_section(script: str, lines: Sequence[str]) -> None:
    """Puts a script's results into RESULTS.md, in the place of what it wrote before."""
    name = Path(script).stem
    text = RESULTS.read_text("utf-8") if RESULTS.exists() else HEAD
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE))
    sections[name] = "\n".join(("", _machine(), "", *lines))
    body = "\n".join(f"## {name}\n{sections[name].rstrip()}\n" for name in sorted(sections))
    RESULTS.write_text(f"{HEAD}\n{body}", "utf-8")


def _machine() -> str:
    model = "unknown processor"
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        model = found.group(1) if found else model
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "mosaicml", "mosaicml-streaming"))
    return f"{os.cpu_count()} cores of {model}; Python {platform.python_version()}, {packages}."
