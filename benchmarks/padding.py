"""Claims: a step is faster if the encoder computes valid tokens only, and if microbatches group rows of similar length,
each with the same loss.

History lengths are distributed as in real data: log-normal, most of them short, a few cut at the longest. A step is the
forward and backward pass of all microbatches of one batch, on one core. Valid tokens only is compared in random order.

    python benchmarks/padding.py [--rows 128] [--microbatch 16] [--longest 256] [--repetitions 5]
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import Claim, in_turns, report
from benchmarks.random_rows import random_row
from ugt_composer.config.schema import ModelConfig
from ugt_composer.data.batch import Batch
from ugt_composer.data.collate import PackedRow, collate
from ugt_composer.losses.unified import UnifiedLoss
from ugt_composer.model.build import build_model
from ugt_composer.training.microbatch import split_batch

MEDIAN_LENGTH, SPREAD = 30, 1.0
CODEBOOKS = (64, 256, 1024)
TARGET = 5
MODEL = ModelConfig(
    d_model=128,
    n_heads=4,
    n_encoder_layers=4,
    n_decoder_layers=2,
    d_ff=256,
    dropout=0.0,
    codebook_sizes=CODEBOOKS,
    num_experts=4,
    top_k_experts=2,
    expert_capacity_factor=None,
)


def make_rows(count: int, longest: int) -> list[PackedRow]:
    random = np.random.default_rng(0)
    lengths = np.exp(random.normal(np.log(MEDIAN_LENGTH), SPREAD, count)).astype(int).clip(2, longest)
    return [random_row(number, CODEBOOKS, length, TARGET) for number, length in enumerate(lengths.tolist())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--microbatch", type=int, default=16)
    parser.add_argument("--longest", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = build_model(MODEL, seed=0)
    loss = UnifiedLoss(repr_dim=MODEL.d_model, lambda_moe_balance=0.0)
    rows = make_rows(arguments.rows, arguments.longest)
    batches = {
        longest_first: collate(rows, longest_first=longest_first, with_lengths=True) for longest_first in (True, False)
    }

    def step(longest_first: bool, packed: bool = True) -> float:
        model.zero_grad()
        total = 0.0
        for piece in split_batch(batches[longest_first], arguments.microbatch):
            given = cast(Batch, {key: value for key, value in piece.items() if packed or key != "encoder_tokens"})
            weighted_loss = loss(model(given), given)["total_loss"] * len(piece["row_ids"]) / arguments.rows
            weighted_loss.backward()
            total += weighted_loss.item()
        return total

    claims = []
    for what, target, ours, rival, against in (
        ("valid tokens only in the encoder", 1.2, partial(step, False), partial(step, False, False), "padding too"),
        ("microbatches of similar lengths", 1.3, partial(step, True), partial(step, False), "random order"),
    ):
        difference = abs(ours() / rival() - 1)
        ratio, our_seconds, rival_seconds = in_turns(ours, rival, arguments.repetitions)
        what = f"{what}, {arguments.rows} rows, {arguments.microbatch} at a time"
        note = f"{1000 * our_seconds:.0f} ms and {1000 * rival_seconds:.0f} ms"
        claims += [
            Claim(f"{what}: speed of a step", against, 1 / ratio, target, at_least=True, note=note),
            Claim(f"{what}: relative difference of the loss", against, difference, 1e-6, at_least=False),
        ]
    return report(__file__, claims)


if __name__ == "__main__":
    sys.exit(main())
