"""Results of the GPU benchmarks: the processes of the parts send events, the main process writes a Markdown file."""

import datetime
import gc
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks.claims import markdown
from benchmarks.on_gpu.goals import GOALS, goals_section, read_tables

PACKAGES = ("torch", "triton", "mosaicml", "mosaicml-streaming", "deepspeed", "transformers", "torchmetrics", "numpy")
HEAD = """# Benchmark results on a GPU

Written by `make bench-gpu`, section by section. Times are medians between CUDA events after warm-up; batches are
synthetic and on the device. GiB are 2^30 bytes, TFLOP 10^12 operations; a multiply-add counts as two.
"""


class Report:
    """Used in the process of a part: sends each measurement at once, one JSON object per line."""

    def __init__(self, channel: IO[str]):
        self._channel = channel

    def _send(self, **event: Any) -> None:
        self._channel.write(json.dumps(event) + "\n")
        self._channel.flush()

    def machine(self) -> None:
        self._send(machine=machine_line())

    def table(self, title: str, how: str, heads: Sequence[str]) -> None:
        """Starts a table, to which later rows are added. Parts of a section that use the same title share the table."""
        self._send(table=title, how=how, heads=list(heads))

    def row(self, *cells: object) -> None:
        self._send(row=[str(cell) for cell in cells])

    def text(self, *lines: str) -> None:
        """A paragraph below the table, or several lines as they are."""
        self._send(text=list(lines))

    def doing(self, what: str) -> None:
        """Names what is being done, for the reason of a part that is ended at its limit."""
        self._send(doing=what)

    def attempt(self, what: str, measure: Callable[[], Sequence[object]]) -> None:
        """Adds a row of `what` and the cells that `measure` returns, or the error that it raised."""
        self.doing(what)
        try:
            self.row(what, *measure())
        except Exception as error:
            first_line = next((line for line in str(error).splitlines() if line.strip()), "")
            self.row(what, f"failed: {type(error).__name__}: {first_line[:200]}")
        gc.collect()  # frees tensors in the traceback, and modules in reference cycles
        torch.cuda.empty_cache()


class Results:
    """The file of results. Every change is written at once.

    Args:
        path: the sections of an existing file that this run does not measure are kept.
    """

    def __init__(self, path: Path):
        self._path = path
        text = path.read_text("utf-8") if path.exists() else ""
        sections = re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE)
        self._earlier = {name: body.strip() for name, body in sections}
        self._sections: dict[str, Section] = {}

    def clear(self, section: str) -> None:
        self._sections[section] = Section()
        self._write()

    def take(self, section: str, event: dict[str, Any]) -> None:
        self._sections[section].take(event)
        if "doing" not in event:
            self._write()

    def failed(self, section: str, part: str, why: str) -> None:
        self._sections[section].add_row([part, f"failed: {why}"])
        print(f"{part}: {why}", flush=True)
        self._write()

    def write_goals(self) -> None:
        """The last section, from all others in the file."""
        self._earlier[GOALS] = goals_section(read_tables(self._path))
        self._write()

    def _write(self) -> None:
        bodies = self._earlier | {name: section.markdown() for name, section in self._sections.items()}
        text = HEAD + "".join(
            f"\n## {name}\n\n{bodies[name]}\n" for name in sorted(bodies, key=lambda name: (name == GOALS, name))
        )
        temporary = self._path.with_name(f".{self._path.name}")
        temporary.write_text(text, "utf-8")
        os.replace(temporary, self._path)


class Section:
    """Tables and paragraphs in the order in which they were reported."""

    def __init__(self) -> None:
        self._machine = ""
        self._tables: dict[str, tuple[str, list[str], list[list[str]]]] = {}
        self._texts: dict[str, list[list[str]]] = {}
        self._title = ""

    def take(self, event: dict[str, Any]) -> None:
        if "machine" in event:
            self._machine = event["machine"]
        elif "table" in event:
            self._title = event["table"]
            self._tables.setdefault(self._title, (event["how"], event["heads"], []))
        elif "row" in event:
            self.add_row(event["row"])
        elif "text" in event:
            self._texts.setdefault(self._title, []).append(event["text"])

    def add_row(self, cells: list[str]) -> None:
        if self._title not in self._tables:
            self._tables[self._title] = ("", ["what", ""], [])
        _, heads, rows = self._tables[self._title]
        cells = [cell.replace("|", "¦") for cell in cells]
        rows.append(cells + [""] * (len(heads) - len(cells)))

    def markdown(self) -> str:
        blocks = [self._machine]
        for title, (how, heads, rows) in self._tables.items():
            blocks += [f"### {title}" * bool(title), how, "\n".join(markdown(heads, rows)) if rows else ""]
            for lines in self._texts.get(title, []):
                blocks.append("\n".join(lines if len(lines) == 1 else ["```", *lines, "```"]))
        return "\n\n".join(filter(None, blocks))


def machine_line() -> str:
    card = torch.cuda.get_device_properties(0)
    packages = []
    for name in PACKAGES:
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            packages.append(f"no {name}")
    return (
        f"{card.name}, {card.total_memory / 2**30:.1f} GiB, driver {driver_version()}, CUDA {torch.version.cuda}; "
        f"{os.cpu_count()} CPU cores; Python {platform.python_version()}, {', '.join(packages)}; "
        f"{datetime.date.today().isoformat()}."
    )


def driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "of unknown version"
