"""The `ugt` command: uses trained models, and inspects the files that a run reads and writes."""

import argparse
from collections.abc import Sequence

from ugt_composer import __version__
from ugt_composer.cli import evaluate, export, extend, inspect, preferences, recommend, reference
from ugt_composer.errors import exit_on_user_error
from ugt_composer.job.cpus import share_cpus

COMMANDS = {
    "recommend": recommend,
    "evaluate": evaluate,
    "inspect": inspect,
    "export": export,
    "extend": extend,
    "preferences": preferences,
    "reference": reference,
}


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
    return COMMANDS[arguments.command].main(arguments)


def run() -> None:
    share_cpus()
    exit_on_user_error(main)
