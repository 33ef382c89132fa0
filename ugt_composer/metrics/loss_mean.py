"""Losses over an evaluation set, exact whatever the batches and ranks."""

from collections.abc import Mapping

import torch
from torch import Tensor

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


def loss_mean(weights: Mapping[str, float], sums: Tensor, counts: Tensor) -> Tensor:
    """Σ weight · (sum / count) over some of EVALUATION_MEANS; those that nothing was counted for are left out.

    Args:
        weights: by name; a loss that is not named has none.
        sums: float64 (M,) in the order of EVALUATION_MEANS.
        counts: float64 (M,).

    Returns:
        float64 (); NaN where nothing at all was counted.
    """
    weight = torch.tensor([weights.get(name, 0.0) for name, _ in EVALUATION_MEANS], dtype=sums.dtype)
    used = (counts > 0) & (weight != 0)
    mean = (weight * sums / counts.clamp(min=1e-12)).where(used, 0).sum()
    return mean.where(used.any(), torch.nan)
