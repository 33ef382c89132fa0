"""The `ugt` command: trains and uses models, and inspects the files that a run reads and writes."""

import argparse
import os
import sys
from collections.abc import Sequence

from ugt_composer import __version__, train
from ugt_composer.cli import evaluate, export, extend, inspect, preferences, recommend, reference
from ugt_composer.command import Command, parse, summary
from ugt_composer.errors import EXIT_BAD_INPUT, UserError, nearest
from ugt_composer.job.cpus import share_cpus
from ugt_composer.job.exit import exit_as_rank
from ugt_composer.job.signals import warning
from ugt_composer.job.start import begin_rank, slow_imports

COMMANDS: dict[str, Command] = {
    "train": train,
    "recommend": recommend,
    "evaluate": evaluate,
    "inspect": inspect,
    "export": export,
    "extend": extend,
    "preferences": preferences,
    "reference": reference,
}
STARTS_RANKS = ("train",)  # begin as a rank themselves
ON_MANY_RANKS = ("recommend", "evaluate", "reference", *STARTS_RANKS)


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if not words:
        _parser().print_help(sys.stderr)
        return EXIT_BAD_INPUT
    if words[0].startswith("-"):
        _parser().parse_args(words)
    name, *rest = words
    if name not in COMMANDS:
        raise UserError(f"ugt {name}: unknown command; {nearest(name, list(COMMANDS))}")
    arguments = parse(COMMANDS[name], f"ugt {name}", rest)
    if os.environ.get("WORLD_SIZE", "1") != "1" and name not in STARTS_RANKS:
        _begin_ranks(name)
    return COMMANDS[name].main(arguments)


def _parser() -> argparse.ArgumentParser:
    """That of `ugt` without a command, whose help lists the commands."""
    parser = argparse.ArgumentParser(prog="ugt", description=__doc__)
    parser.add_argument("--version", action="version", version=f"ugt_composer {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=summary(command))
    return parser


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
