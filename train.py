"""Trains one stage: `composer train.py yamls/stage1.yaml optimizer.lr=3e-4`, or `python train.py …` for one process.

The program is ugt_composer/train.py, which `ugt train` runs as well.
"""

from ugt_composer.train import run

if __name__ == "__main__":
    run("train.py")
