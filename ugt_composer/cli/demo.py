"""Run all steps on generated data: three stages, metrics beside the best possible ones, recommendations.

A few minutes on a laptop's CPU. Each command is printed before it runs. If it is stopped, run it again to resume.

With --law signals, what customers did and when decides what they take next: one model that reads actions and times,
and one that does not.
"""

import argparse
import shlex
import sys
from pathlib import Path

EPILOG = """examples:
  ugt demo
  ugt demo --out /tmp/demo
  ugt demo --law signals

Exit status: 0 done, 75 preempted: run again, otherwise that of the command that failed."""
SHOP, SIGNALS = "shop", "signals"
FOLDERS = {SHOP: Path("demo-run"), SIGNALS: Path("demo-run/signals")}  # default of --out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"everything is written there (default {FOLDERS[SHOP]}; with --law {SIGNALS} {FOLDERS[SIGNALS]})",
    )
    parser.add_argument(
        "--law",
        choices=tuple(FOLDERS),
        default=SHOP,
        help="what the customers' choices depend on, see ugt demo-data --help (default %(default)s)",
    )


def main(arguments: argparse.Namespace) -> int:
    from ugt_composer.demo import run, run_signals
    from ugt_composer.job.child import Children, Preempted

    run_demo = run.run_demo if arguments.law == SHOP else run_signals.run_demo
    try:
        run_demo(Children(), arguments.out or FOLDERS[arguments.law])
    except Preempted as preempted:
        print(f"preempted; `{_command(arguments)}` resumes", file=sys.stderr)
        return preempted.status
    return 0


def _command(arguments: argparse.Namespace) -> str:
    """The command, as a user types it."""
    words = ["ugt", "demo"]
    if arguments.out is not None:
        words += ["--out", str(arguments.out)]
    if arguments.law != SHOP:
        words += ["--law", arguments.law]
    return shlex.join(words)
