"""Runs several `ugt` commands one after the other, as one rank. Started by a launcher, which takes seconds."""

import json
import sys

from ugt_composer.cli.main import main
from ugt_composer.job.exit import exit_as_rank


def run() -> int:
    return max(main(command) for command in json.loads(sys.argv[1]))


if __name__ == "__main__":
    exit_as_rank(run)
