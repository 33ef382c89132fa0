"""Two processes of 16 rows against one of 32: losses, metrics, gradients and memory, over several steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.losses.loss_toy import ToyModel, make_batch, take
from tests.rank_processes import run_ranks
from ugt_composer.losses.normalization import batch_counts

pytestmark = pytest.mark.processes
RANKS, ROWS, STEPS = 2, 32, 4
ALL_ON = {"lambda_contrastive": 0.4, "lambda_preference": 0.3, "lambda_moe_balance": 0.2}
NO_NEGATIVES = ALL_ON | {"lambda_contrastive": 0.0, "lambda_moe_balance": 0.0}

# name: (arguments of the loss, rows of each microbatch on a rank, whether all labels of rank 0 are ignored)
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...], bool]] = {
    "memory fills up": (ALL_ON | {"num_negatives": 50}, (16,), False),
    "sample of the batch": (ALL_ON | {"num_negatives": 7, "dpo_loss_type": "softmax"}, (16,), False),
    "a rank of ignored rows": (ALL_ON | {"num_negatives": 20}, (16,), True),
    "uneven microbatches": (NO_NEGATIVES, (11, 5), False),
}


def batch_of(step: int, empty_half: bool) -> dict[str, torch.Tensor]:
    batch = make_batch(ROWS, seed=step)
    if empty_half:
        batch["labels"][: ROWS // RANKS] = -100
        batch["rejected_mask"][: ROWS // RANKS] = False
    return batch


def rows_of_rank(step: int, rank: int, empty_half: bool) -> torch.Tensor:
    """The rows of a rank, in another order each step. With `empty_half` each rank has a fixed half of the rows."""
    if empty_half:
        return torch.arange(ROWS).chunk(RANKS)[rank].flip(0)
    return torch.randperm(ROWS, generator=torch.Generator().manual_seed(step)).chunk(RANKS)[rank]


def train(name: str, rank: int | None) -> list[dict[str, torch.Tensor]]:
    """A few steps of SGD on one rank, or on the whole batch (rank None). Returns the values of each step."""
    arguments, microbatches, empty_half = CASES[name]
    model = ToyModel(**arguments)
    wrapped = model if rank is None else DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    steps = []
    for step in range(STEPS):
        batch = batch_of(step, empty_half)
        totals = batch_counts(batch)
        pieces = [batch]
        if rank is not None:
            pieces = list(take_pieces(take(batch, rows_of_rank(step, rank, empty_half)), microbatches))
        record: dict[str, torch.Tensor] = {}
        optimizer.zero_grad()
        for piece in pieces:
            share = len(piece["labels"]) / sum(len(other["labels"]) for other in pieces)
            wrapped.require_backward_grad_sync = piece is pieces[-1]
            losses = wrapped({**piece, "batch_totals": totals})
            (losses["total_loss"] * share).backward()
            values = {key: value for key, value in losses.items() if key != "metrics"} | losses["metrics"]
            for key, value in values.items():
                record[key] = record.get(key, torch.zeros(())) + share * value.detach()
        record |= {f"grad {key}": p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
        record |= {f"buffer {key}": value.clone() for key, value in model.named_buffers()}
        optimizer.step()
        steps.append(record)
    return steps


def take_pieces(batch: dict[str, torch.Tensor], sizes: tuple[int, ...]):
    start = 0
    for size in sizes:
        yield take(batch, slice(start, start + size))
        start += size


def run_rank(rank: int, folder: str) -> None:
    results: dict[str, Any] = {name: train(name, rank) for name in CASES}
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of every rank; the processes are started once for all tests."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    run_ranks(run_rank, (str(folder),), RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one_process(name, ranks):
    whole = train(name, rank=None)
    for step, expected in enumerate(whole):
        records = [results[name][step] for results in ranks]
        for key, value in expected.items():
            shared = key.startswith(("grad", "buffer"))  # DDP has averaged the gradients; buffers are the same
            found = [record[key] for record in records] if shared else [sum(record[key] for record in records) / RANKS]
            for one in found:
                torch.testing.assert_close(
                    one, value, rtol=1e-4, atol=2e-6, msg=lambda text, at=(step, key): f"{at}: {text}"
                )


def test_the_cases_cover_what_they_are_for(ranks):
    filled = [step["buffer loss.contrastive.memory_valid"].sum().item() for step in ranks[0]["memory fills up"]]
    assert filled[0] < 50 == filled[-1]
    assert all(step["dpo_loss"] == 0 for step in ranks[0]["a rank of ignored rows"])
    assert all(step["dpo_loss"] > 0 for step in ranks[1]["a rank of ignored rows"])
    assert all(step["contrastive_loss"] > 0 for step in ranks[0]["sample of the batch"])


def test_the_balance_loss_is_the_same_on_every_rank(ranks):
    for one, other in zip(ranks[0]["memory fills up"], ranks[1]["memory fills up"], strict=True):
        assert one["moe_balance_loss"] == other["moe_balance_loss"]
