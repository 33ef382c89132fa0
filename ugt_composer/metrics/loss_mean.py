"""Losses over an evaluation set, exact for any division into batches and ranks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def loss_mean(names: Sequence[str], weights: Mapping[str, float], sums: Tensor, counts: Tensor) -> Tensor:
    """Σ weight · (sum / count) over those of the M values that have a weight; those with a count of 0 are left out.

    Args:
        names: M names.
        weights: by name; a value that is not named has weight 0.
        sums: float64 (M,) in the order of `names`.
        counts: float64 (M,).

    Returns:
        float64 (); NaN if all of their counts are 0.
    """
    weight = torch.tensor([weights.get(name, 0.0) for name in names], dtype=sums.dtype)
    used = (counts > 0) & (weight != 0)
    mean = (weight * sums / counts.clamp(min=1e-12)).where(used, 0).sum()
    return mean.where(used.any(), torch.nan)
