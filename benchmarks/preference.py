"""Claim: a step on preference pairs takes less than half the time of two full passes of policy and reference.

The usual implementation passes (history, chosen item) and (history, rejected item) through the policy and through the
reference, and computes the same loss. Ours encodes the history once for both items, and the reference decodes only the
state from which both items are scored; or its log-probabilities are stored with the rows.

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
    """log p (B,) of items (B, 3), from the logits at BOS."""
    logits = [outputs[f"l{level}_logits"][:, 0] for level in (1, 2, 3)]
    return sum(-F.cross_entropy(one, items[:, level], reduction="none") for level, one in enumerate(logits))


def two_passes(policy: UGT, reference: UGT, batch: Batch, ntp: UnifiedLoss) -> Tensor:
    """The loss of a step in the usual implementation."""
    without_pairs = {
        **{name: value for name, value in batch.items() if name != "label_tokens"},
        "rejected_ids": batch["rejected_ids"][:, :0],
        "rejected_mask": batch["rejected_mask"][:, :0],
    }
    batches = {"chosen": without_pairs, "rejected": {**without_pairs, "labels": batch["rejected_ids"]}}
    outputs = {name: policy(inputs, with_logits=True) for name, inputs in batches.items()}
    with torch.no_grad():
        reference_logps = {
            name: item_logps(reference(inputs, with_logits=True), inputs["labels"][:, 0])
            for name, inputs in batches.items()
        }
    policy_logps = {name: item_logps(outputs[name], inputs["labels"][:, 0]) for name, inputs in batches.items()}
    chosen, rejected = (policy_logps[name] - reference_logps[name] for name in ("chosen", "rejected"))
    margin = chosen - rejected
    return ntp(outputs["chosen"], without_pairs)["total_loss"] - F.logsigmoid(BETA * margin).mean()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--history", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy, reference = build_model(MODEL, seed=0), build_model(MODEL, seed=1)
    reference.eval().requires_grad_(False)
    loss = UnifiedLoss(repr_dim=MODEL.d_model, lambda_moe_balance=0.0, lambda_preference=1.0, dpo_beta=BETA)
    ntp = UnifiedLoss(repr_dim=MODEL.d_model, lambda_moe_balance=0.0)
    ours = ComposerUGT(policy, loss, Reference(reference), None, [10], 10, False, 0.0)
    stored = ComposerUGT(policy, loss, None, None, [10], 10, False, 0.0)
    batch = make_batch(arguments.rows, arguments.history)
    with_logps = {**batch, "reference_logps": Reference(reference)(batch)["logps"]}

    def step(total: Tensor) -> float:
        policy.zero_grad()
        total.backward()
        return total.item()

    def our_step() -> float:
        return step(ours.loss(ours(batch), batch)["total"])

    def stored_step() -> float:
        return step(stored.loss(stored(with_logps), with_logps)["total"])

    def usual_step() -> float:
        return step(two_passes(policy, reference, batch, ntp))

    usual = usual_step()
    what = f"step on {arguments.rows} pairs with histories of {arguments.history // 2} to {arguments.history} items"
    claims = []
    for name, variant_step, target, passes_left in (
        ("", our_step, 0.45, 4),
        (", reference stored with the rows", stored_step, 0.3, 3),
    ):
        difference = abs(variant_step() / usual - 1)
        assert difference < 1e-5, "the two steps compute different losses"
        ratio, our_seconds, rival_seconds = in_turns(variant_step, usual_step, arguments.repetitions)
        note = f"{1000 * our_seconds:.0f} ms and {1000 * rival_seconds:.0f} ms"
        limit = (
            "a backward pass costs as much as two forward passes, so the rival's two passes of the policy and two of "
            f"the reference cost 8. Here {passes_left} remain, a ratio of {passes_left / 8:.3g}: one forward and "
            f"backward pass{', one forward pass of the reference' * (passes_left > 3)}."
        )
        claim = Claim(f"{what}{name}: time", "two passes of policy and reference", ratio, target, False, note, limit)
        claims.append(claim)
    return report(__file__, claims)


if __name__ == "__main__":
    sys.exit(main())
