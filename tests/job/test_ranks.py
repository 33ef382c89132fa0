"""Ranks that work in steps: sums, and the errors of one rank on all of them."""

import os

import pytest

from tests.rank_processes import run_ranks
from ugt_composer.errors import UserError
from ugt_composer.job.ranks import Ranks, joined_ranks


def set_rank(number: int, size: int) -> None:
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(size), "LOCAL_RANK": str(number)}


def work(number: int, size: int) -> None:
    set_rank(number, size)
    with joined_ranks() as ranks:
        for step in range(5):
            ranks.step(amount=step + number)
        ranks.finish()
        assert ranks.total == sum(step + rank for step in range(5) for rank in range(size))
        assert ranks.exchange(number) == list(range(size))
        assert ranks.from_first(lambda: f"by rank {number}") == "by rank 0"
        assert ranks.agree(lambda: number) == number
        with pytest.raises(UserError, match="no rank 1"):
            ranks.agree(lambda: fail("no rank 1") if number == 1 else None)
        with pytest.raises(UserError, match="no rank 0"):
            ranks.from_first(lambda: fail("no rank 0"))
        with pytest.raises(UserError, match="bad line"):
            work_until_the_mistake(ranks)


def work_until_the_mistake(ranks: Ranks) -> None:
    for step in range(5):
        ranks.step(1, UserError("bad line") if (ranks.number, step) == (1, 2) else None)
    ranks.finish()


def fail(message: str) -> None:
    raise UserError(message)


@pytest.mark.processes
def test_ranks_add_up_their_work_and_share_their_errors():
    run_ranks(work, (2,), 2)


def test_a_single_process_works_alone():
    with joined_ranks() as ranks:
        ranks.step(3)
        ranks.step(4)
        ranks.finish()
        assert (ranks.total, ranks.size, ranks.is_first) == (7, 1, True)
        assert ranks.exchange("x") == ["x"]
        with pytest.raises(UserError, match="bad"):
            ranks.agree(lambda: fail("bad"))
        with pytest.raises(UserError, match="bad"):
            ranks.step(error=UserError("bad"))
