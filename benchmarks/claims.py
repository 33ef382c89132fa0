"""Measures and reports the claims of a benchmark: ratios of times measured alternately in one run, and their targets.

`report` prints a script's claims and writes them to RESULTS.md, replacing the earlier results of the same script.
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
HEAD = """# Benchmark results

Written by `make bench`. A ratio compares two programs that run alternately, so that it is reliable on a noisy machine
too; it is the median over the repetitions. Absolute numbers are for orientation only: do not compare them between
machines.
"""


@dataclass(frozen=True)
class Claim:
    """
    Attributes:
        what: what is measured.
        rival: the baseline that it is compared with.
        ratio: of the two, in the direction of the target.
        target: bound for the ratio.
        at_least: whether the target is a lower bound; otherwise it is an upper bound.
        note: absolute numbers.
        limit: why the target is missed; printed below the table if it is.
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
    """Runs both alternately, after a warm-up run of each.

    Returns: the median of our time divided by the rival's, and the median time of each in seconds.
    """
    ours(), rival()
    pairs = [(seconds(ours), seconds(rival)) for _ in range(repetitions)]
    return statistics.median(a / b for a, b in pairs), *(statistics.median(times) for times in zip(*pairs, strict=True))


def peak_bytes(program: str, *arguments: object) -> int:
    """The growth of the peak memory of a Python program, run as a process, between its calls of begin() and end()."""
    command = [sys.executable, "-c", PEAK + program, *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(output.split()[-1])


# Prepended to programs of `peak_bytes`: they call begin() after the warm-up, and end() when done.
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
    """Prints the claims and writes them to RESULTS.md. Returns the exit status: 1 if a claim does not hold."""
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
    """Writes a script's results to RESULTS.md, replacing its earlier ones."""
    name = Path(script).stem
    text = RESULTS.read_text("utf-8") if RESULTS.exists() else HEAD
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE))
    sections[name] = "\n".join(("", _machine(), "", *lines))
    body = "\n".join(f"## {name}\n{sections[name].rstrip()}\n" for name in sorted(sections))
    RESULTS.write_text(f"{HEAD}\n{body}", "utf-8")


def _machine() -> str:
    model = "unknown processor"
    if Path("/proc/cpuinfo").exists():
        match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        model = match.group(1) if match else model
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "mosaicml", "mosaicml-streaming"))
    return f"{os.cpu_count()} cores of {model}; Python {platform.python_version()}, {packages}."
