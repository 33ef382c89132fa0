"""Assigns semantic IDs to items, or reports their quality: the program `ugt ids`."""

from collections.abc import Sequence

from ugt_composer.cli import ids
from ugt_composer.command import parse
from ugt_composer.errors import exit_on_user_error
from ugt_composer.job.cpus import share_cpus


def main(arguments: Sequence[str] | None = None) -> int:
    return ids.main(parse(ids, "python convert/semantic_ids.py", arguments))


if __name__ == "__main__":
    share_cpus()
    exit_on_user_error(main)
