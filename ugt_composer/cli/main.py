"""The `ugt` command: uses trained models, and inspects the files that a run reads and writes."""

import argparse
import os
from collections.abc import Sequence

from ugt_composer import __version__
from ugt_composer.cli import evaluate, export, extend, inspect, preferences, recommend, reference
from ugt_composer.errors import UserError
from ugt_composer.job.cpus import share_cpus
from ugt_composer.job.exit import exit_as_rank
from ugt_composer.job.signals import warning
from ugt_composer.job.start import begin_rank, slow_imports

COMMANDS = {
    "recommend": recommend,
    "evaluate": evaluate,
    "inspect": inspect,
    "export": export,
    "extend": extend,
    "preferences": preferences,
    "reference": reference,
}
ON_MANY_RANKS = ("recommend", "evaluate", "reference")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ugt", description=__doc__)
    parser.add_argument("--version", action="version", version=f"ugt_composer {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").strip().splitlines()[0]
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
    arguments = parser.parse_args(argv)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        _begin_ranks(arguments.command)
    return COMMANDS[arguments.command].main(arguments)


def _begin_ranks(command: str) -> None:
    if command not in ON_MANY_RANKS:
        raise UserError(
            f"ugt {command} is a single process, but was started as {os.environ['WORLD_SIZE']}; start it without "
            f"composer or torchrun (on several ranks run {', '.join(ON_MANY_RANKS)})"
        )
    warning.unprepared = "interrupted; run the same command again (recommend --out keeps the finished parts)"
    begin_rank()
    with slow_imports(compiles=False):
        import ugt_composer.parallelism.device  # noqa: F401 - Composer, which takes the signals


def run() -> None:
    share_cpus()
    exit_as_rank(main)


if __name__ == "__main__":
    run()
