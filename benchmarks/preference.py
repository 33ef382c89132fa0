"""Claim: a step on pairs takes less than half of what two full passes of policy and reference take.

The usual way passes (history, chosen item) and (history, rejected item) through the policy and both through the
reference, and computes the same loss. Here the history is encoded once for both items, and the reference decodes
nothing but the state that both items are scored from; or its log-probabilities come with the rows.

    python benchmarks/preference.py [--rows 32] [--history 100] [--repetitions 5]
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import Claim, in_turns, report
from benchmarks.random_rows import random_row
from ugt_composer.config.schema import ModelConfig
from ugt_composer.data.batch import Batch
from ugt_composer.data.collate import collate
from ugt_composer.losses.unified import UnifiedLoss
from ugt_composer.model.build import build_model
from ugt_composer.model.reference import Reference
from ugt_composer.model.ugt import UGT
from ugt_composer.training.composer_model import ComposerUGT

CODEBOOKS = (128, 512, 4096)
BETA = 0.1
MODEL = ModelConfig(
    d_model=128,
    n_heads=4,
    n_encoder_layers=4,
    n_decoder_layers=4,
    d_ff=512,
    dropout=0.0,
    codebook_sizes=CODEBOOKS,
    num_experts=8,
    top_k_experts=2,
    expert_capacity_factor=None,
)


def make_batch(rows: int, history: int) -> Batch:
    lengths = np.random.default_rng(0).integers(history // 2, history + 1, rows).tolist()
    return collate([random_row(number, CODEBOOKS, length, 1, rejected=1) for number, length in enumerate(lengths)])


def item_logps(outputs: dict[str, Tensor], items: Tensor) -> Tensor:
    """log p (B,) of items (B, 3) by the logits at BOS."""
    logits = [outputs[f"l{level}_logits"][:, 0] for level in (1, 2, 3)]
    return sum(-F.cross_entropy(one, items[:, level], reduction="none") for level, one in enumerate(logits))


def two_passes(policy: UGT, reference: UGT, batch: Batch, ntp: UnifiedLoss) -> Tensor:
    """The loss of a step, as it is usually computed."""
    whole = {**batch, "rejected_ids": batch["rejected_ids"][:, :0], "rejected_mask": batch["rejected_mask"][:, :0]}
    passes = {"chosen": whole, "rejected": {**whole, "labels": batch["rejected_ids"]}}
    outputs = {name: policy(one) for name, one in passes.items()}
    with torch.no_grad():
        before = {name: item_logps(reference(one), one["labels"][:, 0]) for name, one in passes.items()}
    after = {name: item_logps(outputs[name], one["labels"][:, 0]) for name, one in passes.items()}
    margin = (after["chosen"] - before["chosen"]) - (after["rejected"] - before["rejected"])
    return ntp(outputs["chosen"], whole)["total_loss"] - F.logsigmoid(BETA * margin).mean()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--history", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy, before = build_model(MODEL, seed=0), build_model(MODEL, seed=1)
    before.eval().requires_grad_(False)
    loss = UnifiedLoss(repr_dim=MODEL.d_model, lambda_moe_balance=0.0, lambda_preference=1.0, dpo_beta=BETA)
    ntp = UnifiedLoss(repr_dim=MODEL.d_model, lambda_moe_balance=0.0)
    ours = ComposerUGT(policy, loss, Reference(before), None, [10], 10, False, 0.0)
    stored = ComposerUGT(policy, loss, None, None, [10], 10, False, 0.0)
    batch = make_batch(arguments.rows, arguments.history)
    with_logps = {**batch, "reference_logps": Reference(before)(batch)}

    def step(total: Tensor) -> float:
        policy.zero_grad()
        total.backward()
        return total.item()

    def our_step() -> float:
        return step(ours.loss(ours(batch), batch)["total"])

    def stored_step() -> float:
        return step(stored.loss(stored(with_logps), with_logps)["total"])

    def usual_step() -> float:
        return step(two_passes(policy, before, batch, ntp))

    usual = usual_step()
    what = f"step on {arguments.rows} pairs with histories of {arguments.history // 2} to {arguments.history} items"
    claims = []
    for name, own_step, target, left in (
        ("", our_step, 0.45, 4),
        (", reference stored with the rows", stored_step, 0.3, 3),
    ):
        difference = abs(own_step() / usual - 1)
        assert difference < 1e-5, "the two do not compute the same"
        ratio, own, other = in_turns(own_step, usual_step, arguments.repetitions)
        note = f"{1000 * own:.0f} ms and {1000 * other:.0f} ms"
        limit = (
            "a pass back costs two forward ones: the rival's two passes and its two of the reference cost 8, of which "
            f"{left} are left, {left / 8:.3g}: one forth and back{', one of the reference' * (left > 3)}."
        )
        claim = Claim(f"{what}{name}: time", "two passes of policy and reference", ratio, target, False, note, limit)
        claims.append(claim)
    return report(__file__, claims)


if __name__ == "__main__":
    sys.exit(main())
