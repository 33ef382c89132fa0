"""What the programs have in common: a command is a module with a docstring, examples, options and a `main`."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ugt_composer import __version__
from ugt_composer.errors import RunError


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
    parser = argparse.ArgumentParser(prog=prog, **texts(command))
    parser.add_argument("--version", action="version", version=f"ugt_composer {__version__}")
    command.add_arguments(parser)
    return parser.parse_intermixed_args(words)  # key=value and files may also follow an option


def texts(command: Command) -> dict[str, Any]:
    """Arguments of a parser: what its help says."""
    return {
        "description": command.__doc__,
        "epilog": command.EPILOG,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def program(name: str) -> str:
    """The path of a program that is installed with this package, such as composer: beside this Python, or on PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise RunError(f"the program {name} is neither beside {sys.executable} nor on PATH; activate its environment")
    return found
