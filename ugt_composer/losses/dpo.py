"""Preference losses on log-probabilities of a chosen and several rejected items.

Shapes: B rows, N rejected items of a row (0 in a batch without preferences).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt_composer.config.schema import LossConfig
from ugt_composer.errors import nearest
from ugt_composer.losses.normalization import PREFERENCE_WEIGHT, batch_mean, preference_weights
from ugt_composer.losses.term import Mean

LOSS_TYPES = ("sigmoid", "ipo", "hinge", "softmax")


class DPOLoss(nn.Module):
    """Direct preference optimisation (DPO) and related losses, averaged over rows weighted by preference score.

    With the margin m = (log pi(chosen) - log pi(rejected)) - (log ref(chosen) - log ref(rejected)):

    sigmoid  -(1 - s) log sigmoid(beta m) - s log sigmoid(-beta m)
             (Rafailov et al. 2023; label smoothing s: Mitchell 2023, conservative DPO)
    ipo      (m - 1 / (2 beta))^2                  (Azar et al. 2023)
    hinge    max(0, 1 - beta m)                    (Zhao et al. 2023, SLiC; Liu et al. 2023, RSO)
    softmax  log(1 + sum over rejected of exp(-beta m))    (Chen et al. 2024, S-DPO)

    The first three are averaged over a row's rejected items. With `reference_free`, the reference's terms are 0.
    """

    name = "dpo_loss"
    means = (
        Mean("dpo_loss", PREFERENCE_WEIGHT, weight=1.0),
        Mean("dpo_accuracy", PREFERENCE_WEIGHT, higher_is_better=True),
        Mean("dpo_reward_margin", PREFERENCE_WEIGHT, higher_is_better=True),
    )

    def __init__(
        self,
        beta: float = LossConfig.dpo_beta,
        label_smoothing: float = LossConfig.dpo_label_smoothing,
        reference_free: bool = LossConfig.dpo_reference_free,
        loss_type: str = LossConfig.dpo_loss_type,
    ) -> None:
        super().__init__()
        if loss_type not in LOSS_TYPES:
            raise ValueError(f"loss_type: {loss_type!r} is unknown; {nearest(loss_type, list(LOSS_TYPES))}")
        if beta <= 0:
            raise ValueError(f"beta must be above 0, found {beta}")
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in [0, 0.5), found {label_smoothing}")
        if label_smoothing > 0 and loss_type != "sigmoid":
            raise ValueError(
                f"label_smoothing must be 0 unless loss_type is sigmoid, found {label_smoothing} with {loss_type}"
            )
        self.beta = beta
        self.label_smoothing = label_smoothing
        self.reference_free = reference_free
        self.loss_type = loss_type

    def forward(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
        rejected_mask: Tensor | None = None,
        weight: Tensor | None = None,
        batch_totals: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        policy_chosen_logps, reference_chosen_logps: (B,)
        policy_rejected_logps, reference_rejected_logps: (B, N); the reference is not read when reference-free
        rejected_mask: (B, N) bool, which rejected items exist; None: all. Rows without any contribute nothing
        weight: (B,) weight of the row, its preference score; None: 1
        batch_totals: (6,) counts of the global batch, see `normalization`
        returns: loss (), and the means, with the same weights, of `dpo_accuracy` (how often the chosen item's reward is
            above a rejected one's; a tie counts 0, so a policy that equals the reference has 0) and
            `dpo_reward_margin` (beta m)
        """
        if rejected_mask is None:
            rejected_mask = torch.ones_like(policy_rejected_logps, dtype=torch.bool)
        if weight is None:
            weight = torch.ones_like(policy_chosen_logps, dtype=torch.float32)
        margins = policy_chosen_logps.float()[:, None] - policy_rejected_logps.float()
        if not self.reference_free:
            margins = margins - self._reference_margins(margins, reference_chosen_logps, reference_rejected_logps)
        # Masked before anything else is computed from them, so that a missing item's value reaches no gradient.
        margins = margins.masked_fill(~rejected_mask, 0.0)

        row_weights = preference_weights(weight, rejected_mask)
        weight_sum = row_weights.sum()

        def mean(row_values: Tensor) -> Tensor:
            total = (row_weights * row_values).sum()
            return batch_mean(total, weight_sum, len(row_weights), batch_totals, PREFERENCE_WEIGHT)

        rewards = self.beta * margins.detach()
        metrics = {
            "dpo_accuracy": mean(_mean_over_rejected((rewards > 0).float(), rejected_mask)),
            "dpo_reward_margin": mean(_mean_over_rejected(rewards, rejected_mask)),
        }
        return mean(self._row_losses(margins, rejected_mask)), metrics

    def _reference_margins(self, margins: Tensor, chosen: Tensor | None, rejected: Tensor | None) -> Tensor:
        """log ref(chosen) - log ref(rejected): (B, N)."""
        if chosen is None or rejected is None:
            if margins.shape[1] > 0:
                raise ValueError("reference log-probabilities are needed unless loss.dpo_reference_free is true")
            return torch.zeros_like(margins)
        return (chosen.float()[:, None] - rejected.float()).detach()

    def _row_losses(self, margins: Tensor, rejected_mask: Tensor) -> Tensor:
        """The loss of each row (B,) from margins (B, N)."""
        if self.loss_type == "softmax":
            terms = (-self.beta * margins).masked_fill(~rejected_mask, float("-inf"))
            return torch.logsumexp(F.pad(terms, (1, 0)), dim=-1)  # the padded 0 is the 1 of log(1 + sum)
        if self.loss_type == "ipo":
            pair_losses = (margins - 1 / (2 * self.beta)).square()
        elif self.loss_type == "hinge":
            pair_losses = F.relu(1 - self.beta * margins)
        else:
            smoothing = self.label_smoothing
            pair_losses = -(1 - smoothing) * F.logsigmoid(self.beta * margins)
            pair_losses = pair_losses - smoothing * F.logsigmoid(-self.beta * margins)
        return _mean_over_rejected(pair_losses, rejected_mask)

    def of_batch(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `LossTerm`."""
        rejected_mask = batch["rejected_mask"] & batch["row_mask"][:, None]
        if rejected_mask.shape[1] == 0:
            # Still returns metrics: they are averaged with those of microbatches and ranks that have preferences.
            loss, accuracy, margin = batch["preference_score"].new_zeros(3, dtype=torch.float32).unbind()
            return loss, {"dpo_accuracy": accuracy, "dpo_reward_margin": margin}
        return self(
            outputs["chosen_logps"],
            outputs["rejected_logps"],
            outputs.get("reference_chosen_logps"),
            outputs.get("reference_rejected_logps"),
            rejected_mask,
            batch["preference_score"],
            batch.get("batch_totals"),
        )


def _mean_over_rejected(values: Tensor, rejected_mask: Tensor) -> Tensor:
    """(B, N) -> (B,), 0 for rows without rejected items."""
    return (values * rejected_mask).sum(dim=-1) / rejected_mask.sum(dim=-1).clamp(min=1)
