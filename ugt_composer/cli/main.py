"""From tables of interactions to recommendations: prepares data, trains a generative recommender, and uses it."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial

from ugt_composer import __version__, train
from ugt_composer.cli import (
    completion,
    convert,
    demo,
    demo_data,
    evaluate,
    export,
    extend,
    ids,
    import_table,
    init,
    inspect,
    preferences,
    recommend,
    reference,
    report,
    rounds,
)
from ugt_composer.command import Command, parse, summary, texts
from ugt_composer.errors import EXIT_BAD_INPUT, UserError, nearest
from ugt_composer.job.cpus import share_cpus
from ugt_composer.job.exit import exit_as_rank
from ugt_composer.job.signals import warning
from ugt_composer.job.start import begin_rank, slow_imports

COMMANDS: dict[str, Command] = {
    "init": init,
    "demo": demo,
    "demo-data": demo_data,
    "import": import_table,
    "ids": ids,
    "convert": convert,
    "train": train,
    "rounds": rounds,
    "evaluate": evaluate,
    "report": report,
    "recommend": recommend,
    "export": export,
    "inspect": inspect,
    "extend": extend,
    "preferences": preferences,
    "reference": reference,
    "completion": completion,
}
EPILOG = """`ugt COMMAND --help` has examples. To begin: `ugt demo`, or `ugt init .` and `ugt import --help`.
On several GPUs: composer -n 8 -c ugt train yamls/stage2.yaml"""
STARTS_RANKS = ("train",)  # begin as a rank themselves
ON_MANY_RANKS = ("recommend", "evaluate", "reference", *STARTS_RANKS)
STARTS_PROGRAMS = ("demo", "rounds")  # which share the CPUs themselves, by the number of their ranks


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if not words:
        parser().print_help(sys.stderr)
        return EXIT_BAD_INPUT
    if words[0].startswith("-"):
        parser().parse_args(words)
    name, *rest = words
    if name not in COMMANDS:
        raise UserError(f"ugt {name}: unknown command; {nearest(name, list(COMMANDS))}")
    arguments = parse(COMMANDS[name], f"ugt {name}", rest)
    if os.environ.get("WORLD_SIZE", "1") != "1" and name not in STARTS_RANKS:
        _begin_ranks(name)
    return COMMANDS[name].main(arguments)


def parser(with_arguments: bool = False) -> argparse.ArgumentParser:
    """That of `ugt` without a command, whose help lists the commands.

    Args:
        with_arguments: whether the commands have their arguments too, which takes about a second.
    """
    parser = argparse.ArgumentParser(
        prog="ugt",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=18),
    )
    parser.add_argument("--version", action="version", version=f"ugt_composer {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        inner = commands.add_parser(name, help=summary(command), **texts(command))
        if with_arguments:
            command.add_arguments(inner)
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
    if sys.argv[1:2] not in [[name] for name in STARTS_PROGRAMS]:
        share_cpus()  # before NumPy and PyTorch are imported, which start their threads
    exit_as_rank(main)


if __name__ == "__main__":
    run()
