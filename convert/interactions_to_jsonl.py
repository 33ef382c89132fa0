"""Converts a table of interactions to JSON Lines or shards: the program `ugt import`."""

from collections.abc import Sequence

from ugt_composer.cli import import_table
from ugt_composer.command import parse
from ugt_composer.errors import exit_on_user_error
from ugt_composer.job.cpus import share_cpus


def main(arguments: Sequence[str] | None = None) -> int:
    return import_table.main(parse(import_table, "python convert/interactions_to_jsonl.py", arguments))


if __name__ == "__main__":
    share_cpus()
    exit_on_user_error(main)
