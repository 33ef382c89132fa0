"""Converts JSON Lines of histories or preferences to MDS shards that training streams: the program `ugt convert`."""

from collections.abc import Sequence

from ugt_composer.cli import convert
from ugt_composer.command import parse
from ugt_composer.errors import exit_on_user_error
from ugt_composer.job.cpus import share_cpus


def main(argv: Sequence[str] | None = None) -> int:
    return convert.main(parse(convert, "python convert/jsonl_to_mds.py", argv))


if __name__ == "__main__":
    share_cpus()
    exit_on_user_error(main)
