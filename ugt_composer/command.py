"""What the programs have in common: a command is a module with a docstring, examples, options and a `main`."""

import argparse
from collections.abc import Sequence
from typing import Protocol

from ugt_composer import __version__


class Command(Protocol):
    """A module that is a command of `ugt`. Its docstring is the description, the first line of it the summary.

    Its imports are cheap, because `ugt --help` imports all commands; what is slow is imported in the functions.
    """

    __doc__: str | None
    EPILOG: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def main(self, arguments: argparse.Namespace) -> int: ...


def summary(command: Command) -> str:
    return (command.__doc__ or "").strip().splitlines()[0]


def parse(command: Command, prog: str, words: Sequence[str] | None = None) -> argparse.Namespace:
    """
    Args:
        prog: how help and errors name the program: as the user typed it.
        words: those after the program's name; None: those of this process.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=command.__doc__,
        epilog=command.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ugt_composer {__version__}")
    command.add_arguments(parser)
    return parser.parse_intermixed_args(words)  # key=value and files may also follow an option
