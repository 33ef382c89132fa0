"""Trains one stage: `composer train.py yamls/stage1.yaml optimizer.lr=3e-4`, or `python train.py …` for one process.

The program is ugt_composer/train.py, which `ugt train` runs as well.
"""

from ugt_composer import train
from ugt_composer.command import parse
from ugt_composer.job.exit import exit_as_rank


def main() -> int:
    return train.main(parse(train, "train.py"))


if __name__ == "__main__":
    exit_as_rank(main)
