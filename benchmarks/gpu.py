"""Measures training steps, recommendation, rivals and kernels on one GPU, section by section, and writes the goals.

Each part of a section runs in a separate process with a time limit: a hang, an out-of-memory error or a missing package
fails only this part, and a row of the results shows why. A part that ends early leaves its time to the later ones.
Results are written as soon as they are measured, and each section replaces that of an earlier run. So the file is
usable whenever the run ends. The last section, goals, is made from all others in the file.

    python benchmarks/gpu.py [--only SECTION …] [--skip SECTION …] [--limit SECONDS] [--out FILE] [--small]

Exit status: 0 done; 1 a part did not finish; 2 there is no GPU.
"""

import argparse
import contextlib
import importlib
import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.on_gpu.report import Report, Results  # noqa: E402

RESULTS = Path(__file__).with_name("RESULTS-gpu.md")
PATIENCE = 20  # factor for the time limits with --small, which may run on any machine


@dataclass(frozen=True)
class Part:
    """
    Attributes:
        section: module in benchmarks/on_gpu, and heading in the results.
        variant: part of the section that one process measures.
        limit: time limit in seconds.
        on_request: only measured if --only names the section.
        has_kernels: False: the process runs without the Triton kernels.
    """

    section: str
    variant: str
    limit: int
    on_request: bool = False
    has_kernels: bool = True


# The most important parts first. Those that are not on request take at most six minutes together.
PARTS = (
    Part("ceilings", "", 12),
    Part("stages", "eager", 62),
    Part("attention", "", 52),
    Part("t5", "", 52),
    Part("data", "", 33),
    Part("stages", "without kernels", 36, has_kernels=False),
    Part("recommend", "", 25),
    Part("kernels", "", 25),
    Part("recommend", "10 million items", 27),
    Part("stages", "compiled", 36),
    Part("waits", "", 80, on_request=True),
    Part("strategies", "ddp", 40, on_request=True),
    Part("strategies", "fsdp", 40, on_request=True),
    Part("strategies", "deepspeed 1", 60, on_request=True),  # DeepSpeed compiles extensions when its engine starts
    Part("strategies", "deepspeed 2", 60, on_request=True),
    Part("strategies", "deepspeed 3", 60, on_request=True),
    Part("blocks", "", 120, on_request=True),
)
SECTIONS = tuple(dict.fromkeys(part.section for part in PARTS))
BY_DEFAULT = tuple(dict.fromkeys(part.section for part in PARTS if not part.on_request))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_request = [section for section in SECTIONS if section not in BY_DEFAULT]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SECTIONS,
        default=BY_DEFAULT,
        metavar="SECTION",
        help=f"default, at most {sum(part.limit for part in PARTS if not part.on_request)} s: {', '.join(BY_DEFAULT)}; "
        f"only on request: {', '.join(on_request)}",
    )
    parser.add_argument("--skip", nargs="+", choices=SECTIONS, default=(), metavar="SECTION")
    parser.add_argument(
        "--limit", type=int, metavar="SECONDS", help="for all sections together; default: the sum of their own limits"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes, to test the script; the numbers are meaningless"
    )
    parser.add_argument("--part", nargs=2, metavar=("SECTION", "VARIANT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        return measure_part(*options.part, small=options.small)
    if not torch.cuda.is_available():
        print(
            f"benchmarks/gpu.py: PyTorch {torch.__version__} finds no CUDA GPU; this benchmark needs one.",
            file=sys.stderr,
        )
        return 2
    parts = [part for part in PARTS if part.section in options.only and part.section not in options.skip]
    results = Results(options.out)
    for section in dict.fromkeys(part.section for part in parts):
        results.clear(section)
    started = time.monotonic()
    scale = PATIENCE if options.small else 1
    ends = itertools.accumulate(scale * part.limit for part in parts)
    finished = [
        run_part(part, started + min(end, options.limit or end), results, options.small)
        for part, end in zip(parts, ends, strict=True)
    ]
    results.write_goals()
    print(f"{sum(finished)} of {len(parts)} parts finished in {time.monotonic() - started:.0f} s: {options.out}")
    return int(not all(finished))


def measure_part(section: str, variant: str, small: bool) -> int:
    """Runs in the process of a part: its results go to stdout, all that libraries print to stderr."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    report = Report(channel)
    module = importlib.import_module(f"benchmarks.on_gpu.{section}")
    report.machine()
    module.measure(report, variant, small)
    channel.flush()
    sys.stderr.flush()
    os._exit(0)  # skips the teardown of process groups and engines


def run_part(part: Part, deadline: float, results: Results, small: bool) -> bool:
    """Runs a part, passes on its results, and kills it at its deadline. Returns whether it finished."""
    name = " ".join(filter(None, (part.section, part.variant)))
    limit = deadline - time.monotonic()
    if limit <= 0:
        results.failed(part.section, name, "left out, the time limit of the run was reached")
        return False
    command = [sys.executable, str(Path(__file__).resolve()), "--part", part.section, part.variant]
    print(f"{name} …", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command + ["--small"] * small,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            cwd=ROOT,
            env=os.environ | ({} if part.has_kernels else {"UGT_KERNELS": "0"}),
            start_new_session=True,
        )
        assert process.stdout is not None
        last_step = receive(process, process.stdout, part.section, started + limit, results)
        status = process.poll()
        end_group(process)
        seconds = time.monotonic() - started
        if status == 0:
            print(f"{name}: {seconds:.0f} s", flush=True)
            return True
        log.seek(0)
        lines = [line.rstrip() for line in log if line.strip() and "Warning: destroy_process_group" not in line]
    print("\n".join(lines[-20:]), file=sys.stderr, flush=True)
    reason = f"ended at its limit of {limit:.0f} s" if status is None else f"exit status {status}"
    if status is not None and lines:
        reason += f", {lines[-1][:300]}"
    results.failed(part.section, name, f"{reason}{f'; last step: {last_step}' if last_step else ''}")
    return False


def receive(process: subprocess.Popen, stream: IO[str], section: str, deadline: float, results: Results) -> str:
    """Passes on what a part reports until it ends or the deadline is reached. Returns its last step."""
    last_step, pending = "", b""
    os.set_blocking(stream.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while (remaining := deadline - time.monotonic()) > 0:
            ended = process.poll() is not None  # checked before reading, so that all output written before is read
            chunk: bytes | None = b""
            if selector.select(0 if ended else min(remaining, 0.5)):
                chunk = os.read(stream.fileno(), 1 << 16)
                pending += chunk
            *lines, pending = pending.split(b"\n")
            for line in lines:
                event: dict[str, Any] = json.loads(line)
                last_step = event.get("doing", last_step)
                results.take(section, event)
            if ended and not chunk:
                break
            if not chunk and not ended:
                time.sleep(0.05)  # end of the output, but the process is still running
    return last_step


def end_group(process: subprocess.Popen) -> None:
    """Kills a part together with the compilers that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
