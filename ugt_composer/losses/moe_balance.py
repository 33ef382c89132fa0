"""The load-balancing loss of the routers of a mixture of experts.

Shapes: Y layers with a router, E experts.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ugt_composer.losses.ranks import sum_over_ranks
from ugt_composer.losses.term import Mean
from ugt_composer.model.moe import balance_loss


class MoEBalanceLoss(nn.Module):
    """`balance_loss` over the tokens of all ranks; every rank has the global value."""

    name = "moe_balance_loss"
    means: tuple[Mean, ...] = ()  # none: it measures how evenly the experts are used, not how good the model is

    def forward(self, router_counts: Tensor, router_prob_sums: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """router_counts, router_prob_sums: (Y, E) of this rank's tokens. Returns the loss () and no metrics."""
        # Sum first, then divide: the mean of the ranks' ratios would be another number. One collective for both sums.
        sums = sum_over_ranks(torch.stack([router_counts.detach().float(), router_prob_sums.float()]))
        return balance_loss(sums[0].detach(), sums[1]), {}

    def of_batch(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `LossTerm`."""
        return self(outputs["router_counts"], outputs["router_prob_sums"])
