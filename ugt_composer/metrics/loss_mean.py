"""Losses over an evaluation set, exact whatever the batches and ranks."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from ugt_composer.losses.normalization import LABELS_L1, LABELS_L2, LABELS_L3, PREFERENCE_WEIGHT, TARGETS

# What is averaged, and over which count of `losses.normalization.batch_counts`.
EVALUATION_MEANS = (
    ("ntp_l1_loss", LABELS_L1),
    ("ntp_l2_loss", LABELS_L2),
    ("ntp_l3_loss", LABELS_L3),
    ("contrastive_loss", TARGETS),
    ("contrastive_u2i_acc", TARGETS),
    ("dpo_loss", PREFERENCE_WEIGHT),
    ("dpo_accuracy", PREFERENCE_WEIGHT),
    ("dpo_reward_margin", PREFERENCE_WEIGHT),
)


class LossMean(Metric):
    """Σ weight · (sum / count) over some of EVALUATION_MEANS; those that nothing was counted for are left out.

    NaN where nothing at all was counted.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, weights: Mapping[str, float]):
        super().__init__()
        self.weights = [weights.get(name, 0.0) for name, _ in EVALUATION_MEANS]
        zeros = torch.zeros(len(EVALUATION_MEANS), dtype=torch.float64)
        self.add_state("sums", default=zeros, dist_reduce_fx="sum")
        self.add_state("counts", default=zeros.clone(), dist_reduce_fx="sum")

    def update(self, sums: Tensor, counts: Tensor) -> None:
        """sums and counts of one batch, each in the order of EVALUATION_MEANS."""
        self.sums += sums
        self.counts += counts

    def compute(self) -> Tensor:
        weights = torch.tensor(self.weights, dtype=self.sums.dtype, device=self.sums.device)
        used = (self.counts > 0) & (weights != 0)
        mean = (weights * self.sums / self.counts.clamp(min=1e-12)).where(used, 0).sum()
        return mean.where(used.any(), torch.nan).float()
