"""The program `train.py` as one of several rehearsing processes.

NULLGPU_COUNT=2 nullgpu/run.sh PYTHON composer -n 2 tests/rehearsal/train.py [--one-more RANK | --stall RANK] YAML…
"""

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # instead of this folder, whose train.py is another one

import torch  # noqa: E402
from composer import Callback  # noqa: E402
from composer.utils import dist  # noqa: E402

from tests.rehearsal.ranks import objects_over_gloo  # noqa: E402
from tests.rehearsal.without_numbers import accept_zeros  # noqa: E402
from ugt_composer import train  # noqa: E402
from ugt_composer.command import parse  # noqa: E402
from ugt_composer.job.exit import exit_as_rank  # noqa: E402
from ugt_composer.training.trainer import UGTTrainer  # noqa: E402


class OneMore(Callback):
    """A mistake: at the end of the second step one rank calls a collective that the others do not call."""

    def __init__(self, rank: int):
        self.rank = rank

    def after_train_batch(self, state, logger):
        if state.timestamp.batch.value == 1 and dist.get_global_rank() == self.rank:
            torch.distributed.all_reduce(torch.zeros(7, device="cuda"))


class Stall(Callback):
    """One rank stalls between forward and backward pass of the second step; the GPUs of the others wait."""

    def __init__(self, rank: int):
        self.rank = rank

    def after_forward(self, state, logger):
        if state.timestamp.batch.value == 1 and dist.get_global_rank() == self.rank:
            time.sleep(600)


MISTAKES = {"--one-more": OneMore, "--stall": Stall}


def main() -> int:
    if (mistake := MISTAKES.get(sys.argv[1])) is not None:
        _, rank = sys.argv.pop(1), int(sys.argv.pop(1))
        fit = UGTTrainer.fit

        def fit_with_mistake(trainer: UGTTrainer, *args, **kwargs) -> None:
            trainer.state.callbacks.append(mistake(rank))
            fit(trainer, *args, **kwargs)

        UGTTrainer.fit = fit_with_mistake  # type: ignore[method-assign]
    accept_zeros()
    objects_over_gloo()
    return train.main(parse(train, "train.py"))


if __name__ == "__main__":
    exit_as_rank(main)
